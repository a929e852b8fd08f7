// msgpack, to Python objects and back, for what the documents of an API are made of: maps, arrays,
// text, bytes, numbers, booleans and nil, at most kMaxDepth levels of them.
//
// What else there is (extension types, containers as keys, deeper trees, subclasses, integers
// beyond 64 bits, text that is no UTF-8, malformed bytes) is left to the msgpack library: both
// functions then return NotImplemented and have changed nothing, and the library's answer, or its
// error, is the answer. So the two must agree on everything that is not left to it, byte for byte;
// tests compare them. What this is for:
//
//   - a shared object is sealed (seal.hpp) while it is made, without a second pass. Its containers
//     are ours alone until they are returned (S1), hold nothing but such containers and what the
//     collector does not know, and are taken off its lists when they are complete (S6). S5 holds
//     but for the callbacks of the collector, which may see a container being filled: read-only.
//   - a new version of a document shares what has not changed with the last one (`Like`).
//   - the keys of a million documents are a few hundred strings: those known from before are found
//     by their bytes, with no allocation, no decoding and no hashing. Many short texts among the
//     values are few too (phases, names of nodes, times): they are shared as well.
//
// REQUIRES: the GIL. No Python code runs in here (keys are hashed, but only those of built-in
// types), so the static state is nobody else's meanwhile.
#pragma once

#include <Python.h>

#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "seal.hpp"

namespace shmcache::wire {

constexpr int kMaxDepth = 64;

// --- strings ------------------------------------------------------------------------------------

inline bool is_ascii(const char* data, size_t size) {
  size_t at = 0;
  uint64_t bits = 0;
  for (; at + 8 <= size; at += 8) {
    uint64_t word;
    std::memcpy(&word, data + at, 8);
    bits |= word;
  }
  for (; at < size; ++at) bits |= static_cast<unsigned char>(data[at]);
  return (bits & 0x8080808080808080u) == 0;
}

// A new str, or null with an exception.
inline PyObject* new_text(const char* data, size_t size) {
  if (!is_ascii(data, size)) {
    return PyUnicode_DecodeUTF8(data, static_cast<Py_ssize_t>(size), nullptr);
  }
  PyObject* text = PyUnicode_New(static_cast<Py_ssize_t>(size), 127);
  if (text != nullptr) std::memcpy(PyUnicode_1BYTE_DATA(text), data, size);
  return text;
}

constexpr size_t kLongest = 40;  // of what is shared

inline uint64_t hash(const char* data, size_t size) {
  uint64_t h = size;
  for (; size >= 8; data += 8, size -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
  }
  uint64_t rest = 0;
  std::memcpy(&rest, data, size);
  return (h ^ rest) * 0x9e3779b97f4a7c15u;
}

inline bool equals(PyObject* text, const char* data, size_t size) {
  return static_cast<size_t>(PyUnicode_GET_LENGTH(text)) == size &&
         std::memcmp(PyUnicode_1BYTE_DATA(text), data, size) == 0;
}

// Keys seen before, by a hash of their bytes; a newer one takes the place of an older. Interned, as
// the keys of the msgpack library and the literals of the program are, so that a lookup by one of
// those compares pointers.
class Keys {
 public:
  // A new reference, or null with an exception.
  PyObject* get(const char* data, size_t size) {
    if (size == 0 || size > kLongest) return new_text(data, size);
    PyObject*& known = places_[(hash(data, size) >> 40) % kPlaces];
    if (known != nullptr && equals(known, data, size)) return Py_NewRef(known);
    PyObject* text = new_text(data, size);
    if (text == nullptr || !PyUnicode_IS_COMPACT_ASCII(text)) return text;
    PyUnicode_InternInPlace(&text);
    PyObject_Hash(text);  // it keeps it
    PyObject* old = known;
    known = Py_NewRef(text);
    Py_XDECREF(old);
    return text;
  }

 private:
  static constexpr size_t kPlaces = 1024;

  PyObject* places_[kPlaces] = {};
};

inline Keys keys;

// Values seen before, of objects that stay: of those that are soon gone it is not worth it. Most
// texts come once: so a place is given to one that comes a second time while none other of the same
// place has come, and a first time costs no more than a mark.
class Values {
 public:
  // A new reference, or null with an exception.
  PyObject* get(const char* data, size_t size) {
    if (size == 0 || size > kLongest) return new_text(data, size);
    const uint64_t h = hash(data, size);
    Place& place = places_[(h >> 40) % kPlaces];
    const auto mark = static_cast<uint32_t>(h);
    if (place.known == mark && place.text != nullptr && equals(place.text, data, size)) {
      return Py_NewRef(place.text);
    }
    PyObject* text = new_text(data, size);
    if (std::exchange(place.came, mark) != mark || text == nullptr ||
        !PyUnicode_IS_COMPACT_ASCII(text)) {
      return text;
    }
    place.known = mark;
    PyObject* old = std::exchange(place.text, Py_NewRef(text));
    Py_XDECREF(old);
    return text;
  }

 private:
  static constexpr size_t kPlaces = 4096;

  struct Place {
    PyObject* text = nullptr;
    uint32_t known = 0, came = 0;  // hashes: of `text`, and of the last that was new here
  };
  Place places_[kPlaces];
};

inline Values values;

// --- bytes to objects ---------------------------------------------------------------------------

// An object of this process that is like the one that is read, most often its last version: what is
// equal in both is taken from there. An update of a document changes a few of its fields, so most
// of it is neither made nor, when the last version goes, unmade; and who has both sees by `is` what
// has stayed. Equal is what gives the same bytes, types included: 1 is not True.
//
// It is looked at and never trusted: whatever it holds, what is read says the same. It is kept
// alive while it is walked, each level by itself, since collector callbacks may run.
using Like = PyObject*;  // borrowed; null: there is none

class Reader {
 public:
  // `dict` and `list`: the types that containers are sealed with, null to leave them plain.
  Reader(const char* data, size_t size, PyTypeObject* dict, PyTypeObject* list)
      : at_(reinterpret_cast<const unsigned char*>(data)),
        end_(at_ + size),
        dict_(dict),
        list_(list) {}

  // The object, or null: left to the library (no exception), or out of memory (MemoryError).
  PyObject* read(Like like) {
    PyObject* made = value(like);
    if (made != nullptr && at_ == end_) return made;
    Py_XDECREF(made);
    if (PyErr_Occurred() != nullptr && !PyErr_ExceptionMatches(PyExc_MemoryError)) PyErr_Clear();
    return nullptr;
  }

 private:
  // A strong reference for as long as a block lasts.
  class Ref {
   public:
    explicit Ref(PyObject* object) : object_(object) {}
    ~Ref() { Py_XDECREF(object_); }
    Ref(const Ref&) = delete;
    Ref& operator=(const Ref&) = delete;
    PyObject* get() const { return object_; }
    void set(PyObject* object) { Py_XSETREF(object_, object); }
    PyObject* release() { return std::exchange(object_, nullptr); }

   private:
    PyObject* object_;
  };

  size_t left() const { return static_cast<size_t>(end_ - at_); }

  // A big-endian number; what is not there reads as 0, and `short_` says so.
  template <int kBytes>
  uint64_t number() {
    if (left() < kBytes) {
      short_ = true;
      at_ = end_;
      return 0;
    }
    uint64_t value = 0;
    for (int i = 0; i < kBytes; ++i) value = value << 8 | at_[i];
    at_ += kBytes;
    return value;
  }

  // Whether `size` bytes are there; then they are behind us.
  const char* take(uint64_t size) {
    if (short_ || size > left()) return nullptr;
    const char* data = reinterpret_cast<const char*>(at_);
    at_ += size;
    return data;
  }
  // Of built-in types, so no Python code runs. Not for floats: -0.0 equals 0.0.
  static bool equal(PyObject* a, PyObject* b) {
    return a == b || (Py_IS_TYPE(a, Py_TYPE(b)) && PyObject_RichCompareBool(a, b, Py_EQ) == 1);
  }
  // Takes the reference.
  static PyObject* either(PyObject* made, Like like) {
    if (made == nullptr || like == nullptr || !equal(made, like)) return made;
    Py_DECREF(made);
    return Py_NewRef(like);
  }

  PyObject* text(uint64_t size, Like like) {
    const char* data = take(size);
    if (data == nullptr) return nullptr;
    if (like != nullptr && PyUnicode_CheckExact(like)) {
      if (PyUnicode_IS_COMPACT_ASCII(like)) {
        if (equals(like, data, size)) return Py_NewRef(like);
      } else if (!is_ascii(data, size)) {
        return either(new_text(data, size), like);
      }
    }
    return dict_ != nullptr ? values.get(data, size) : new_text(data, size);
  }
  PyObject* bytes(uint64_t size, Like like) {
    const char* data = take(size);
    if (data == nullptr) return nullptr;
    return either(PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(size)), like);
  }
  PyObject* integer(int64_t value, Like like) {
    return short_ ? nullptr : either(PyLong_FromLongLong(value), like);
  }
  PyObject* floating(double value, Like like) {
    if (short_) return nullptr;
    if (like != nullptr && PyFloat_CheckExact(like)) {
      const double old = PyFloat_AS_DOUBLE(like);
      if (std::memcmp(&old, &value, sizeof value) == 0) return Py_NewRef(like);
    }
    return PyFloat_FromDouble(value);
  }

  static PyObject* seal(PyObject* made, PyTypeObject* type) {
    if (made == nullptr || type == nullptr) return made;
    Py_INCREF(reinterpret_cast<PyObject*>(type));  // S3
    Py_SET_TYPE(made, type);
    PyObject_GC_UnTrack(made);
    return made;
  }
  // Insertions may have put it back on the collector's lists.
  PyObject* complete(Ref& made) const {
    if (dict_ != nullptr) PyObject_GC_UnTrack(made.get());
    return made.release();
  }

  // Of a container that is made after all, the first `count` items are those of `like`.
  PyObject* begin_list(Py_ssize_t size, Like like, Py_ssize_t count) {
    Ref made(PyList_New(size));
    if (made.get() == nullptr) return nullptr;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (i >= PyList_GET_SIZE(like)) return nullptr;
      PyList_SET_ITEM(made.get(), i, Py_NewRef(PyList_GET_ITEM(like, i)));
    }
    return seal(made.release(), list_);
  }
  PyObject* begin_map(Like like, Py_ssize_t count) {
    Ref made(PyDict_New());
    if (made.get() == nullptr) return nullptr;
    Py_ssize_t at = 0;
    for (PyObject *key, *value; count > 0 && PyDict_Next(like, &at, &key, &value); --count) {
      if (PyDict_SetItem(made.get(), key, value) != 0) return nullptr;
    }
    return count > 0 ? nullptr : seal(made.release(), dict_);
  }

  // Each object takes a byte at least, so no more memory is asked for than the bytes promise.
  PyObject* list(uint64_t count, Like like) {
    if (short_ || count > left() || (count > 0 && depth_ == kMaxDepth)) return nullptr;
    const auto size = static_cast<Py_ssize_t>(count);
    const Ref old(like != nullptr && Py_IS_TYPE(like, list_) ? Py_NewRef(like) : nullptr);
    const auto olds = [&] { return old.get() == nullptr ? 0 : PyList_GET_SIZE(old.get()); };
    Ref made(nullptr);  // none, as long as all is as in `old`
    if (old.get() == nullptr || olds() != size) {
      made.set(begin_list(size, nullptr, 0));
      if (made.get() == nullptr) return nullptr;
    }
    ++depth_;
    for (Py_ssize_t i = 0; i < size; ++i) {
      const Ref was(i < olds() ? Py_NewRef(PyList_GET_ITEM(old.get(), i)) : nullptr);
      Ref item(value(was.get()));
      if (item.get() == nullptr) return nullptr;
      if (made.get() == nullptr) {
        if (item.get() == was.get()) continue;
        made.set(begin_list(size, old.get(), i));
        if (made.get() == nullptr) return nullptr;
      }
      PyList_SET_ITEM(made.get(), i, item.release());
    }
    --depth_;
    return made.get() == nullptr ? Py_NewRef(old.get()) : complete(made);
  }

  PyObject* map(uint64_t count, Like like) {
    if (short_ || count > left() / 2 || (count > 0 && depth_ == kMaxDepth)) return nullptr;
    const auto size = static_cast<Py_ssize_t>(count);
    const Ref old(like != nullptr && Py_IS_TYPE(like, dict_) ? Py_NewRef(like) : nullptr);
    Ref made(nullptr);  // none, as long as all is as in `old`
    if (old.get() == nullptr || PyDict_GET_SIZE(old.get()) != size) {
      made.set(begin_map(nullptr, 0));
      if (made.get() == nullptr) return nullptr;
    }
    bool in_step = old.get() != nullptr;  // the keys until here are the first of `old`
    Py_ssize_t at = 0;
    ++depth_;
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyObject *old_key = nullptr, *old_value = nullptr;
      in_step = in_step && PyDict_Next(old.get(), &at, &old_key, &old_value);
      const Ref expected(Py_XNewRef(old_key));
      const Ref key(in_step && skip(old_key) ? Py_NewRef(old_key) : this->key());
      if (key.get() == nullptr) return nullptr;
      in_step = in_step && PyUnicode_CheckExact(key.get()) && equal(expected.get(), key.get());
      if (!in_step && old.get() != nullptr) {
        old_value = PyDict_GetItemWithError(old.get(), key.get());
        if (old_value == nullptr && PyErr_Occurred() != nullptr) return nullptr;
      }
      const Ref was(Py_XNewRef(old_value));
      const Ref item(value(was.get()));
      if (item.get() == nullptr) return nullptr;
      if (made.get() == nullptr) {
        if (in_step && item.get() == was.get()) continue;
        made.set(begin_map(old.get(), i));
        if (made.get() == nullptr) return nullptr;
      }
      if (PyDict_SetItem(made.get(), key.get(), item.get()) != 0) return nullptr;
    }
    --depth_;
    return made.get() == nullptr ? Py_NewRef(old.get()) : complete(made);
  }

  // Past the bytes of a key, if they are those of `key`; of the two shortest kinds of text, which
  // most are.
  bool skip(PyObject* key) {
    if (!PyUnicode_CheckExact(key) || !PyUnicode_IS_COMPACT_ASCII(key)) return false;
    const auto size = static_cast<size_t>(PyUnicode_GET_LENGTH(key));
    const size_t header = size <= 31 ? 1 : 2;
    if (size > 0xff || left() < header + size) return false;
    if (header == 1 ? *at_ != (0xa0 | size) : *at_ != 0xd9 || at_[1] != size) return false;
    if (std::memcmp(PyUnicode_1BYTE_DATA(key), at_ + header, size) != 0) return false;
    at_ += header + size;
    return true;
  }

  // Containers as keys are the library's.
  PyObject* key() {
    if (at_ == end_) return nullptr;
    const unsigned char c = *at_;
    uint64_t size = 0;
    if (c >= 0xa0 && c <= 0xbf) {
      size = *at_++ & 0x1fu;
    } else if (c == 0xd9) {
      ++at_;
      size = number<1>();
    } else if (c == 0xda) {
      ++at_;
      size = number<2>();
    } else if (c == 0xdb) {
      ++at_;
      size = number<4>();
    } else if ((c >= 0x80 && c <= 0x9f) || (c >= 0xdc && c <= 0xdf)) {
      return nullptr;
    } else {
      return value(nullptr);
    }
    const char* data = take(size);
    return data == nullptr ? nullptr : keys.get(data, size);
  }

  PyObject* value(Like like) {
    if (at_ == end_) return nullptr;
    const unsigned char c = *at_++;
    if (c <= 0x7f) return PyLong_FromLong(c);
    if (c <= 0x8f) return map(c & 0x0fu, like);
    if (c <= 0x9f) return list(c & 0x0fu, like);
    if (c <= 0xbf) return text(c & 0x1fu, like);
    if (c >= 0xe0) return integer(static_cast<signed char>(c), like);
    switch (c) {
      case 0xc0: return Py_NewRef(Py_None);
      case 0xc2: return Py_NewRef(Py_False);
      case 0xc3: return Py_NewRef(Py_True);
      case 0xc4: return bytes(number<1>(), like);
      case 0xc5: return bytes(number<2>(), like);
      case 0xc6: return bytes(number<4>(), like);
      case 0xca: {
        const auto bits = static_cast<uint32_t>(number<4>());
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return floating(static_cast<double>(value), like);
      }
      case 0xcb: {
        const uint64_t bits = number<8>();
        double value;
        std::memcpy(&value, &bits, sizeof value);
        return floating(value, like);
      }
      case 0xcc: return integer(static_cast<int64_t>(number<1>()), like);
      case 0xcd: return integer(static_cast<int64_t>(number<2>()), like);
      case 0xce: return integer(static_cast<int64_t>(number<4>()), like);
      case 0xcf: {
        const uint64_t value = number<8>();
        return short_ ? nullptr : either(PyLong_FromUnsignedLongLong(value), like);
      }
      case 0xd0: return integer(static_cast<int8_t>(number<1>()), like);
      case 0xd1: return integer(static_cast<int16_t>(number<2>()), like);
      case 0xd2: return integer(static_cast<int32_t>(number<4>()), like);
      case 0xd3: return integer(static_cast<int64_t>(number<8>()), like);
      case 0xd9: return text(number<1>(), like);
      case 0xda: return text(number<2>(), like);
      case 0xdb: return text(number<4>(), like);
      case 0xdc: return list(number<2>(), like);
      case 0xdd: return list(number<4>(), like);
      case 0xde: return map(number<2>(), like);
      case 0xdf: return map(number<4>(), like);
      default: return nullptr;  // extension types
    }
  }

  const unsigned char *at_, *end_;
  PyTypeObject *dict_, *list_;
  bool short_ = false;
  int depth_ = 0;
};

inline PyObject* read(PyObject* data, PyTypeObject* dict, PyTypeObject* list, Like like) {
  if (!PyBytes_Check(data)) return Py_NewRef(Py_NotImplemented);
  Reader reader(PyBytes_AS_STRING(data), static_cast<size_t>(PyBytes_GET_SIZE(data)), dict, list);
  PyObject* made = reader.read(like);
  if (made != nullptr || PyErr_Occurred() != nullptr) return made;
  return Py_NewRef(Py_NotImplemented);
}

inline PyObject* unpack(PyObject*, PyObject* data) { return read(data, nullptr, nullptr, nullptr); }

// `self` is (FrozenDict, FrozenList); the arguments are the bytes, and an object like theirs.
inline PyObject* unpack_sealed(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) {
    PyErr_Format(PyExc_TypeError, "unpack_sealed takes 2 arguments, not %zd", count);
    return nullptr;
  }
  return read(args[0], reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(self, 0)),
              reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(self, 1)), args[1]);
}

// --- objects to bytes ---------------------------------------------------------------------------

class Writer {
 public:
  Writer(PyTypeObject* dict, PyTypeObject* list) : dict_(dict), list_(list) {}
  ~Writer() {
    if (buffer_.size() > kKept) std::vector<char>().swap(buffer_);
  }

  // False: left to the library.
  bool write(PyObject* obj, int depth = 0) {
    PyTypeObject* type = Py_TYPE(obj);
    if (type == &PyUnicode_Type) return text(obj);
    if (type == &PyDict_Type || type == dict_) {
      if (depth == kMaxDepth || !container(PyDict_GET_SIZE(obj), 0x80, 0xde)) return false;
      PyObject *key, *value;
      for (Py_ssize_t at = 0; PyDict_Next(obj, &at, &key, &value);) {
        if (!write(key, depth + 1) || !write(value, depth + 1)) return false;
      }
      return true;
    }
    if (type == &PyList_Type || type == list_ || type == &PyTuple_Type) {
      const Py_ssize_t size = PySequence_Fast_GET_SIZE(obj);
      PyObject** items = PySequence_Fast_ITEMS(obj);
      if (depth == kMaxDepth || !container(size, 0x90, 0xdc)) return false;
      for (Py_ssize_t i = 0; i < size; ++i) {
        if (!write(items[i], depth + 1)) return false;
      }
      return true;
    }
    if (obj == Py_None) return head<0>(0xc0, 0);
    if (obj == Py_True) return head<0>(0xc3, 0);
    if (obj == Py_False) return head<0>(0xc2, 0);
    if (type == &PyLong_Type) return integer(obj);
    if (type == &PyFloat_Type) {
      const double value = PyFloat_AS_DOUBLE(obj);
      uint64_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      return head<8>(0xcb, bits);
    }
    if (type == &PyBytes_Type) {
      const auto size = static_cast<size_t>(PyBytes_GET_SIZE(obj));
      return sized(size <= 0xff, 0xc4, size) && body(PyBytes_AS_STRING(obj), size);
    }
    return false;
  }

  std::string_view bytes() const { return {buffer_.data(), used_}; }

 private:
  static constexpr size_t kKept = 256 << 10;

  char* room(size_t size) {
    if (buffer_.size() - used_ < size) buffer_.resize(2 * (used_ + size) + 4096);
    return buffer_.data() + used_;
  }
  template <int kBytes>
  bool head(unsigned char c, uint64_t number) {
    char* to = room(1 + kBytes);
    to[0] = static_cast<char>(c);
    for (int i = 0; i < kBytes; ++i) {
      to[1 + i] = static_cast<char>(number >> (8 * (kBytes - 1 - i)) & 0xff);
    }
    used_ += 1 + kBytes;
    return true;
  }
  bool body(const char* data, size_t size) {
    std::memcpy(room(size), data, size);
    used_ += size;
    return true;
  }
  // A length of 8 (if `one`), 16 or 32 bits: the formats follow each other.
  bool sized(bool one, unsigned char first, size_t size) {
    if (one) return head<1>(first, size);
    if (size <= 0xffff) return head<2>(static_cast<unsigned char>(first + 1), size);
    return size <= 0xffffffff && head<4>(static_cast<unsigned char>(first + 2), size);
  }
  bool container(Py_ssize_t count, unsigned char small, unsigned char large) {
    const auto size = static_cast<size_t>(count);
    if (size <= 15) return head<0>(static_cast<unsigned char>(small | size), 0);
    return sized(false, static_cast<unsigned char>(large - 1), size);
  }
  bool text(PyObject* obj) {
    const char* data;
    Py_ssize_t length;
    if (PyUnicode_IS_COMPACT_ASCII(obj)) {
      data = reinterpret_cast<const char*>(PyUnicode_1BYTE_DATA(obj));
      length = PyUnicode_GET_LENGTH(obj);
    } else if ((data = PyUnicode_AsUTF8AndSize(obj, &length)) == nullptr) {
      PyErr_Clear();  // lone surrogates, or no memory: the library says which
      return false;
    }
    const auto size = static_cast<size_t>(length);
    if (size > 31) return sized(size <= 0xff, 0xd9, size) && body(data, size);
    char* to = room(1 + 31);
    to[0] = static_cast<char>(0xa0 | size);
    std::memcpy(to + 1, data, size);
    used_ += 1 + size;
    return true;
  }
  bool integer(PyObject* obj) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(obj, &overflow);
    if (overflow < 0) return false;
    if (overflow > 0) {
      const unsigned long long large = PyLong_AsUnsignedLongLong(obj);
      if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        return false;
      }
      return head<8>(0xcf, large);
    }
    const auto bits = static_cast<uint64_t>(value);
    if (value >= -32 && value <= 0x7f) return head<0>(static_cast<unsigned char>(bits), 0);
    if (value > 0) {
      if (value <= 0xff) return head<1>(0xcc, bits);
      if (value <= 0xffff) return head<2>(0xcd, bits);
      if (value <= 0xffffffff) return head<4>(0xce, bits);
      return head<8>(0xcf, bits);
    }
    if (value >= INT8_MIN) return head<1>(0xd0, bits);
    if (value >= INT16_MIN) return head<2>(0xd1, bits);
    if (value >= INT32_MIN) return head<4>(0xd2, bits);
    return head<8>(0xd3, bits);
  }

  PyTypeObject *dict_, *list_;
  size_t used_ = 0;
  // One for the process, so that a write seldom allocates: no Python code runs meanwhile.
  static inline std::vector<char> buffer_;
};

// `self` is (FrozenDict, FrozenList).
inline PyObject* pack(PyObject* self, PyObject* obj) {
  try {
    Writer writer(reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(self, 0)),
                  reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(self, 1)));
    if (!writer.write(obj)) return Py_NewRef(Py_NotImplemented);
    const std::string_view made = writer.bytes();
    return PyBytes_FromStringAndSize(made.data(), static_cast<Py_ssize_t>(made.size()));
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// --- for these types of read-only containers ----------------------------------------------------

inline PyObject* nothing(PyObject*, PyObject* const*, Py_ssize_t) {
  return Py_NewRef(Py_NotImplemented);
}

// What PyMethodDef wants; which kind it is say its flags.
inline PyCFunction method(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// (pack, unpack, unpack_sealed) for FrozenDict and FrozenList. Functions that leave everything to
// the library where there is no GIL, or (the last) where there is no sealing.
inline PyObject* wire(PyObject*, PyObject* args) {
  static PyMethodDef leaves = {"nothing", method(nothing), METH_FASTCALL, "NotImplemented."};
  static PyMethodDef packs = {"pack", pack, METH_O, "msgpack of an object, or NotImplemented."};
  static PyMethodDef unpacks = {"unpack", unpack, METH_O, "Plain objects, or NotImplemented."};
  static PyMethodDef seals = {"unpack_sealed", method(unpack_sealed), METH_FASTCALL,
                              "Read-only objects, or NotImplemented."};
  PyObject *frozen_dict, *frozen_list;
  if (!PyArg_ParseTuple(args, "O!O!:wire", &PyType_Type, &frozen_dict, &PyType_Type,
                        &frozen_list)) {
    return nullptr;
  }
#ifdef Py_GIL_DISABLED
  constexpr bool kGil = false;
#else
  constexpr bool kGil = true;
#endif
  const bool sealed = kGil && sealing::possible(frozen_dict, frozen_list);
  return Py_BuildValue("(NNN)", PyCFunction_New(kGil ? &packs : &leaves, args),
                       PyCFunction_New(kGil ? &unpacks : &leaves, args),
                       PyCFunction_New(sealed ? &seals : &leaves, args));
}

inline PyMethodDef kFunctions[] = {
    {"wire", wire, METH_VARARGS, "The functions that pack and unpack msgpack for these types."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace shmcache::wire
