// Sealing: a tree of plain dicts and lists becomes read-only where it is, without a copy.
//
// A decoder builds plain containers at full speed; one walk then gives each of them a subclass as
// its type, as an assignment to `__class__` does between classes of one layout. CPython refuses
// that assignment for dict and list because an instance of an immutable type may be shared by the
// interpreter. Ours are not:
//
// S1. Only a container with exactly one reference is sealed: that of its parent, or for the root
//     that of the caller, who gives it up. So nobody else has it, nothing iterates over it, and it
//     is in no cycle. A tree with any other container (two references, a subclass) is copied, by
//     `copy`.
// S2. The subclass adds nothing to the layout (`same_layout`): the same sizes, no `__dict__`, no
//     weak references, no header in front but that of the collector, the same allocator. The block
//     of memory is then the one that an instance of the subclass would have got.
// S3. The type is a heap type, and each instance owns a reference to it (until `subtype_dealloc`).
// S4. What CPython does for exact dicts and lists only, it decides by the type at that moment:
//     the free lists at deallocation (a sealed block goes back to the allocator), the lazy
//     untracking of dicts (a sealed one stays as it is), the specialized instructions. A dict
//     that is not tracked has no container in it, and insertion tracks dicts of every type.
// S5. No Python code runs and no Python object is made on the walk, so neither the collector nor
//     another thread sees it half way.
//
// S6. A tree of these with nothing in it that the collector knows (`plain_`) cannot come to be part
//     of a cycle, and is taken off its lists: it would walk all that a reader keeps, again and
//     again. Whatever takes such a container apart untracks it first, tracked or not. (Who puts a
//     list into itself past its own methods, by list.append(shared, shared), has a leak.)
//
// That was read in the sources of CPython 3.11 to 3.13 and is tested there. Elsewhere (later ones,
// builds without the GIL, other implementations) everything is copied.
#pragma once

#include <Python.h>

#include <new>
#include <vector>

namespace shmcache::sealing {

#if !defined(PYPY_VERSION) && !defined(Py_GIL_DISABLED) && PY_VERSION_HEX < 0x030E0000
constexpr bool kKnownPython = true;
#else
constexpr bool kKnownPython = false;
#endif

// S2 and S3: what `type_new` and the allocator look at.
inline bool same_layout(const PyTypeObject* sub, const PyTypeObject* base) {
  // Values inline (3.13), weak references (3.12) or a `__dict__` in front of or behind the object.
  constexpr unsigned long kManaged = 1UL << 2 | 1UL << 3 | 1UL << 4;
  return sub->tp_base == base && (sub->tp_flags & Py_TPFLAGS_HEAPTYPE) != 0 &&
         sub->tp_basicsize == base->tp_basicsize && sub->tp_itemsize == base->tp_itemsize &&
         sub->tp_dictoffset == base->tp_dictoffset &&
         sub->tp_weaklistoffset == base->tp_weaklistoffset &&
         sub->tp_alloc == PyType_GenericAlloc && sub->tp_free == PyObject_GC_Del &&
         base->tp_free == PyObject_GC_Del && sub->tp_finalize == nullptr &&
         sub->tp_del == nullptr &&
         ((sub->tp_flags ^ base->tp_flags) & (kManaged | Py_TPFLAGS_HAVE_GC)) == 0;
}

inline bool possible(PyObject* frozen_dict, PyObject* frozen_list) {
  return kKnownPython &&
         same_layout(reinterpret_cast<PyTypeObject*>(frozen_dict), &PyDict_Type) &&
         same_layout(reinterpret_cast<PyTypeObject*>(frozen_list), &PyList_Type);
}

inline bool is_container(PyObject* obj) { return PyDict_Check(obj) || PyList_Check(obj); }

class Walk {
 public:
  Walk(PyObject* frozen_dict, PyObject* frozen_list)
      : dict_(reinterpret_cast<PyTypeObject*>(frozen_dict)),
        list_(reinterpret_cast<PyTypeObject*>(frozen_list)) {
    todo_.reserve(32);
    all_.reserve(32);
  }

  // False if a container in `root` is not ours (S1); what was sealed until then was.
  bool seal(PyObject* root) {
    if (!take(root)) return false;
    while (!todo_.empty()) {
      PyObject* box = todo_.back();
      todo_.pop_back();
      if (Py_IS_TYPE(box, dict_)) {
        PyObject *key, *value;
        for (Py_ssize_t at = 0; PyDict_Next(box, &at, &key, &value);) {
          if (!visit(value)) return false;
          plain_ = plain_ && !PyObject_IS_GC(key);
        }
      } else {
        const Py_ssize_t size = PyList_GET_SIZE(box);
        for (Py_ssize_t i = 0; i < size; ++i) {
          if (!visit(PyList_GET_ITEM(box, i))) return false;
        }
      }
    }
    // S6. Containers that nobody can change, with nothing in them that could lead back: never part
    // of a cycle. The collector need not walk them, and a reader keeps very many.
    if (plain_) {
      for (PyObject* box : all_) PyObject_GC_UnTrack(box);
    }
    return true;
  }

 private:
  bool visit(PyObject* value) {
    if (is_container(value)) return take(value);
    plain_ = plain_ && !PyObject_IS_GC(value);
    return true;
  }

  bool take(PyObject* box) {
    if (Py_REFCNT(box) != 1) return false;
    PyTypeObject* type = PyDict_CheckExact(box) ? dict_ : PyList_CheckExact(box) ? list_ : nullptr;
    if (type == nullptr) return false;
    if (type == dict_ ? PyDict_GET_SIZE(box) > 0 : PyList_GET_SIZE(box) > 0) todo_.push_back(box);
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    Py_SET_TYPE(box, type);
    all_.push_back(box);
    return true;
  }

  PyTypeObject* dict_;
  PyTypeObject* list_;
  std::vector<PyObject*> todo_;
  std::vector<PyObject*> all_;
  bool plain_ = true;  // nothing but containers and what the collector does not know
};

// `self` is (FrozenDict, FrozenList, copy).
inline PyObject* seal(PyObject* self, PyObject* root) {
  if (!is_container(root)) return Py_NewRef(root);
  try {
    Walk walk(PyTuple_GET_ITEM(self, 0), PyTuple_GET_ITEM(self, 1));
    if (walk.seal(root)) return Py_NewRef(root);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  return PyObject_CallOneArg(PyTuple_GET_ITEM(self, 2), root);
}

// The function `seal` for these types; `copy` itself where there is no sealing.
inline PyObject* sealer(PyObject*, PyObject* args) {
  static PyMethodDef method = {"seal", seal, METH_O,
                               "Make a fresh tree of dicts and lists read-only; return it."};
  PyObject *frozen_dict, *frozen_list, *copy;
  if (!PyArg_ParseTuple(args, "O!O!O:sealer", &PyType_Type, &frozen_dict, &PyType_Type,
                        &frozen_list, &copy)) {
    return nullptr;
  }
  if (!possible(frozen_dict, frozen_list)) return Py_NewRef(copy);
  return PyCFunction_New(&method, args);
}

inline PyMethodDef kFunctions[] = {
    {"sealer", sealer, METH_VARARGS, "The function that seals with these types."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace shmcache::sealing
