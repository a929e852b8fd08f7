// The only file of the core, beside seal.hpp and wire.hpp, that knows Python: `Arena`, over shmcache::Arena,
// and `Changes`, over its views.
//
// GIL: a call first tries with the GIL held and without waiting (deadline 0). Only if the lock is
// taken, a repair is due, or what it writes is large, it lets the GIL go and waits. Under the arena's lock no Python
// runs: bytes are made before and decoded after.
//
// Decoded objects are kept per record, with the state word they were decoded from; an entry that
// has not changed gives the same object again. The cache is bounded by the payload bytes of what
// it holds and evicts by a clock hand. It is touched with the GIL held only.
//
// Errors: a Status becomes an exception in exactly one place, shmcache._status.error (Python).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <optional>
#include <type_traits>
#include <utility>

#include "arena.hpp"
#include "futex.hpp"
#include "levels.hpp"
#include "seal.hpp"
#include "wire.hpp"

namespace nb = nanobind;

namespace shmcache {
namespace {

// In the order of Status.
constexpr const char* kStatusNames[] = {
    "ok", "miss", "empty", "interrupted", "shut_down", "exists", "busy", "unfinished",
    "too_small", "too_big", "arena_full", "no_space", "key_size", "priority", "reindexed",
    "read_only", "lock_timeout", "no_slot", "closed", "superseded", "foreign", "wrong_layout",
    "wrong_kind", "wrong_codec", "insecure", "corrupt", "lost", "no_memory", "system"};
static_assert(std::size(kStatusNames) == static_cast<size_t>(Status::kSystem) + 1);

// Payloads from here on are copied with the GIL released.
constexpr uint64_t kLargeBytes = 256 << 10;
constexpr int kReadTries = 5;
constexpr uint32_t kReadsReported = 256;

[[noreturn]] void fail(Status status, const std::string& name, const nb::dict& context) {
  nb::object error = nb::module_::import_("shmcache._status")
                         .attr("error")(kStatusNames[static_cast<size_t>(status)], name, context);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  throw nb::python_error();
}

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kFifo: return "FIFO";
    case Kind::kIndexer: return "Indexer";
    case Kind::kWorkQueue: return "WorkQueue";
    default: return "Store";
  }
}
Kind kind_of(std::string_view name) {
  for (Kind kind : {Kind::kFifo, Kind::kIndexer, Kind::kWorkQueue}) {
    if (name == kind_name(kind)) return kind;
  }
  return Kind::kStore;
}

nb::dict describe(const Finding& finding) {
  nb::dict d;
  d["errno"] = finding.error;
  d["kind"] = kind_name(finding.kind);
  d["layout"] = finding.layout;
  // Latin-1, because a damaged header may hold any bytes.
  d["codec"] = nb::steal(PyUnicode_DecodeLatin1(
      finding.codec, static_cast<Py_ssize_t>(std::string_view(finding.codec).size()), nullptr));
  d["wanted"] = finding.wanted;
  d["available"] = finding.available;
  d["uid"] = finding.uid;
  d["mode"] = finding.mode;
  return d;
}

uint64_t deadline_after(double seconds) {
  // Far enough to be for ever, near enough not to overflow.
  if (!(seconds < 1e9)) return kForever;
  return now_ns() + static_cast<uint64_t>(std::max(seconds, 0.0) * 1e9);
}
uint64_t deadline_after(nb::handle seconds) {
  return seconds.is_none() ? kForever : deadline_after(nb::cast<double>(seconds));
}

// The str's own UTF-8. nullopt: it has none (lone surrogates), so no entry can have this key.
std::optional<std::string_view> utf8(nb::handle key) {
  if (!PyUnicode_Check(key.ptr())) {
    PyErr_Format(PyExc_TypeError, "a key must be a str, not %.100s", Py_TYPE(key.ptr())->tp_name);
    throw nb::python_error();
  }
  Py_ssize_t size;
  const char* data = PyUnicode_AsUTF8AndSize(key.ptr(), &size);
  if (data == nullptr) {
    PyErr_Clear();
    return std::nullopt;
  }
  return std::string_view(data, static_cast<size_t>(size));
}

nb::object to_bytes(std::string_view data) {
  PyObject* b = PyBytes_FromStringAndSize(data.data(), static_cast<Py_ssize_t>(data.size()));
  if (b == nullptr) throw nb::python_error();
  return nb::steal(b);
}

// Until Python 3.14 an interpreter that ends makes daemon threads that come back for the GIL exit
// (pthread_exit), which unwinds their stacks; through frames of C++ that ends in an abort. So such
// a thread is held where the unwinding begins, and waits for the end of the process, as threads do
// from 3.14 on.
[[noreturn]] void wait_for_the_end() {
  for (;;) pause();
}

// Lets the GIL go.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // it is C, and throws nothing else
      wait_for_the_end();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// Where what is known of a key is in the cache, and where its index word was found; `hash` is
// Python's, -1 of none.
struct Shortcut {
  static constexpr uint32_t kNowhere = ~uint32_t{0};

  Py_hash_t hash = -1;
  uint32_t record = 0, slot = kNowhere;
};

// The last list of objects, and which record each is of. Kept only while the cache holds all of
// them anyway, so that it costs pointers and no objects.
struct Listing {
  nb::object objects;               // a list; null: none
  std::vector<uint32_t> records;    // by position
  std::vector<uint32_t> positions;  // by record; kNowhere: not listed

  static constexpr uint32_t kNowhere = ~uint32_t{0};
};

// What a handle knows from its last snapshot. Taken and put back as one: the listing is of the
// instant of the view, but for what the view has touched since.
struct Last {
  View view;
  Listing listing;
};

struct Cached {
  uint64_t state = 0;
  nb::object key;
  nb::object object;  // null if only the key is known
  uint64_t size = 0;
  bool recent = false;
};

// What the entries have in indexes that are being added, by the version of the entry. Native, so
// that a round of Arena::reindex costs what is new in it: writers go on in between.
struct NewTerms {
  std::unordered_map<uint64_t, std::string> by_version;

  void set(uint64_t version, nb::bytes packed) {
    by_version.insert_or_assign(version, std::string(packed.c_str(), packed.size()));
  }
  size_t size() const { return by_version.size(); }
};

enum class What { kKeys, kValues, kItems };

class Changes;
class Handle;

// A claim as Python holds it. No Python code runs at its end, so no signal handler does: a handler
// may have raised before there was a block to end the claim, or as that ended.
struct Token {
  explicit Token(nb::object arena) : arena(std::move(arena)) {}
  ~Token();
  Token(const Token&) = delete;
  Token& operator=(const Token&) = delete;

  nb::object arena;
  Arena::Claim claim;
  bool ended = true;  // there is none yet
};

class Handle {
  friend class Changes;

 public:
  Handle(std::unique_ptr<Segment> segment, std::string name, nb::object decode,
         nb::object priority_func, uint64_t cache_bytes, double lock_timeout)
      : arena_(std::make_unique<Arena>(std::move(segment))),
        name_(std::move(name)),
        decode_(std::move(decode)),
        priority_func_(std::move(priority_func)),
        cache_limit_(cache_bytes),
        lock_timeout_(lock_timeout) {}

  static nb::object create(int fd, const char* shm_name, std::string_view kind, uint64_t capacity,
                           std::string_view codec, uint32_t mode,
                           const std::vector<std::string>& indexes, uint64_t max_attempts,
                           const std::string& name, nb::object decode, nb::object priority_func,
                           uint64_t cache_bytes, double lock_timeout) {
    std::unique_ptr<Segment> segment;
    Finding finding;
    Status s =
        Segment::create(fd, shm_name, kind_of(kind), capacity, codec, mode, indexes,
                        max_attempts, segment, finding);
    if (s != Status::kOk) fail(s, name, describe(finding));
    auto handle = std::make_unique<Handle>(std::move(segment), name, std::move(decode),
                                           std::move(priority_func), cache_bytes, lock_timeout);
    handle->check(handle->arena_->settle(deadline_after(lock_timeout)));
    return nb::cast(handle.release(), nb::rv_policy::take_ownership);
  }

  static nb::object attach(int fd, const char* shm_name, std::string_view kind,
                           std::string_view codec, bool writable, nb::handle trusted_uid,
                           const std::string& name, nb::object decode, nb::object priority_func,
                           uint64_t cache_bytes, double lock_timeout) {
    std::unique_ptr<Segment> segment;
    Finding finding;
    const uint32_t trusted = trusted_uid.is_none() ? kNobody : nb::cast<uint32_t>(trusted_uid);
    Status s =
        Segment::attach(fd, shm_name, kind_of(kind), codec, writable, trusted, segment, finding);
    if (s != Status::kOk) {
      nb::dict context = describe(finding);
      context["trusted_uid"] = nb::borrow(trusted_uid);
      context["wanted_kind"] = nb::str(kind.data(), kind.size());
      context["wanted_codec"] = nb::str(codec.data(), codec.size());
      fail(s, name, context);
    }
    return nb::cast(new Handle(std::move(segment), name, std::move(decode),
                               std::move(priority_func), cache_bytes, lock_timeout),
                    nb::rv_policy::take_ownership);
  }

  void close() {
    if (!closed()) report_reads();
    if (arena_) arena_->close();
    release_if_closed();
  }
  bool closed() const { return !arena_ || arena_->closed(); }
  bool writable() {
    Use use(*this);
    return arena_->segment().writable();
  }

  uint64_t max_attempts() {
    Use use(*this);
    return arena_->segment().header().max_attempts;
  }

  nb::tuple identity() {
    if (closed()) fail(Status::kClosed, name_, nb::dict());
    return nb::make_tuple(arena_->segment().device(), arena_->segment().inode());
  }

  // --- writes ---

  // `terms`: packed as postings.hpp has it, for the first `indexes` indexes.
  bool add(nb::handle key, nb::bytes data, bool if_absent, nb::bytes terms, uint32_t indexes) {
    Use use(*this);
    Entry entry{key_of(key), {data.data(), data.size()}};
    set_terms(entry, terms, indexes);
    entry.priority = priority_of(key);
    bool wrote = false;
    check(locked(data.size(), [&](uint64_t deadline) {
            return arena_->upsert(entry, if_absent ? Upsert::kIfAbsent : Upsert::kAlways, deadline,
                                  wrote);
          }),
          entry.key.size(), data.size());
    return wrote;
  }

  // Of (key, data) or (key, data, terms).
  void add_many(nb::list entries, uint32_t indexes) {
    Use use(*this);
    Batch batch = collect(entries, indexes);
    check(locked(batch.bytes,
                 [&](uint64_t deadline) { return arena_->upsert_many(batch.entries, deadline); }),
          0, batch.bytes);
  }

  void replace(nb::list entries, std::string_view resource_version, uint32_t indexes) {
    Use use(*this);
    check_size(resource_version);
    Batch batch = collect(entries, indexes);
    // Never with the GIL: its cost grows with the store, not with the batch.
    check(locked(kLargeBytes,
                 [&](uint64_t deadline) {
                   return arena_->replace(batch.entries, resource_version, deadline);
                 }),
          0, batch.bytes);
  }

  void bookmark(std::string_view resource_version) {
    Use use(*this);
    check_size(resource_version);
    check(locked(0, [&](uint64_t deadline) { return arena_->bookmark(resource_version, deadline); }));
  }

  bool remove(nb::handle key) {
    Use use(*this);
    auto text = utf8(key);
    bool was_there = false;
    if (!text || text->empty() || text->size() > kMaxKeySize) {
      if (!arena_->segment().writable()) check(Status::kReadOnly);
      return false;
    }
    check(locked(0, [&](uint64_t deadline) { return arena_->erase(*text, deadline, was_there); }));
    return was_there;
  }

  // --- reads ---

  nb::object get_raw(nb::handle key) {
    Use use(*this);
    Hit hit;
    auto text = utf8(key);
    nb::object data;
    if (!text || !read(*text, hit, data, false)) return nb::none();
    ++raw_reads_;
    count_read();
    return data;
  }

  nb::object get(nb::handle key, nb::object otherwise) {
    if (PyObject* known = by_shortcut(key)) return nb::borrow(known);
    Use use(*this);
    Hit hit;
    auto text = utf8(key);
    nb::object data;
    if (!text || !read(*text, hit, data, true)) return otherwise;
    if (!data.is_valid()) {
      Cached& known = cache_[raw(hit.record)];
      ++hits_;
      count_read();
      known.recent = true;
      nb::object object = known.object;
      make_shortcut(key, hit);
      return object;
    }
    ++misses_;
    count_read();
    nb::object object = decode(data, key, last_version(key));
    if (hit.record != kNoRecord) {
      // Others get this key: not one of a subclass, which might run Python.
      nb::object plain = PyUnicode_CheckExact(key.ptr()) ? nb::borrow(key) : to_str(*text);
      remember(hit.record, hit.state, std::move(plain), object, nb::len(data));
      make_shortcut(key, hit);
    }
    return object;
  }

  bool contains(nb::handle key) {
    Use use(*this);
    auto text = utf8(key);
    if (!text) return false;
    Hit hit;
    for (int tries = 0; tries < kReadTries; ++tries) {
      const Status s = arena_->find(*text, hit);
      if (s == Status::kBusy) continue;
      if (s != Status::kOk && s != Status::kMiss) check(s);
      return s == Status::kOk;
    }
    Item item;
    return copy_slowly(*text, item);
  }

  nb::list keys() { return snapshot(What::kKeys); }
  nb::list values() { return snapshot(What::kValues); }
  nb::list items() { return snapshot(What::kItems); }

  // --- Indexer ---

  std::vector<std::string> index_names() {
    Use use(*this);
    std::vector<std::string> names;
    const uint32_t count = std::min(arena_->table().root().indexes, kMaxIndexes);
    for (uint32_t i = 0; i < count; ++i) names.push_back(arena_->segment().index_name(i));
    check(Status::kOk);
    return names;
  }

  // The objects (or keys) of the entries that have one of `values` in index number `index`.
  nb::list select(uint32_t index, nb::list values, bool keys) {
    Use use(*this);
    std::vector<nb::bytes> owners;
    std::vector<std::string_view> wanted;
    for (nb::handle value : values) {
      owners.push_back(nb::cast<nb::bytes>(value));
      wanted.emplace_back(owners.back().c_str(), owners.back().size());
    }
    std::vector<Arena::Found> found;
    std::unordered_map<uint32_t, Item> copies;
    // First without copies: mostly the cache has all. What it lacks is copied the second time, and
    // everything after that, should the cache have lost something meanwhile.
    auto never = [](RecordNo, uint64_t) { return false; };
    check(locked(0, [&](uint64_t deadline) {
      return arena_->select(index, wanted, never, false, deadline, found, copies);
    }));
    const What what = keys ? What::kKeys : What::kValues;
    for (int tries = 0;; ++tries) {
      nb::object result = build(what, live_of(found), copies);
      if (result.is_valid()) return nb::cast<nb::list>(result);
      std::unordered_map<uint32_t, uint64_t> have;
      for (const auto& [record, state] : found) {
        if (tries == 0 && cached(raw(record), state, !keys)) have.emplace(raw(record), state);
      }
      auto want = [&](RecordNo record, uint64_t state) {
        const auto at = have.find(raw(record));
        return at == have.end() || at->second != state;
      };
      const uint64_t deadline = deadline_after(lock_timeout_);
      check(blocking([&] {
        return arena_->select(index, wanted, want, !keys, deadline, found, copies);
      }));
    }
  }

  nb::list index_values(uint32_t index) {
    Use use(*this);
    std::vector<std::string> values;
    check(locked(kLargeBytes, [&](uint64_t deadline) {
      return arena_->index_values(index, deadline, values);
    }));
    nb::list result;
    for (const std::string& value : values) result.append(to_str(value));
    return result;
  }

  // Add the indexes `names` to the `had` that there are. [] if that was done; else (version, key,
  // payload) of entries for which `terms` has nothing.
  nb::list reindex(const std::vector<std::string>& names, uint32_t had, const NewTerms& terms) {
    Use use(*this);
    std::vector<Arena::Missing> missing;
    const Status s = locked(kLargeBytes, [&](uint64_t deadline) {
      return arena_->reindex(names, had, terms.by_version, deadline, missing);
    });
    if (s != Status::kMiss) check(s);
    nb::list result;
    for (const auto& [version, item] : missing) {
      result.append(nb::make_tuple(version, to_str(item.key()), to_bytes(item.value())));
    }
    return result;
  }

  // --- the reflector's seat ---

  bool claim_reflector() {
    Use use(*this);
    if (!arena_->segment().writable()) check(Status::kReadOnly);
    return arena_->segment().claim_reflector();
  }
  bool is_reflector() const { return !closed() && arena_->segment().is_reflector(); }
  void release_reflector() {
    if (!closed()) arena_->segment().release_reflector();
  }

  // Ignored by who has not the seat: it has been given back meanwhile.
  void set_report(const std::string& name, uint32_t state, nb::tuple times, nb::tuple counts,
                  const std::string& last_error) {
    Use use(*this);
    if (!arena_->segment().is_reflector()) return;
    Report report{};
    report.pid = static_cast<uint64_t>(getpid());
    report.state = state;
    report.heartbeat_ns = now_ns();
    report.contact_ns = nb::cast<uint64_t>(times[0]);
    report.event_ns = nb::cast<uint64_t>(times[1]);
    report.error_ns = nb::cast<uint64_t>(times[2]);
    report.lists = nb::cast<uint64_t>(counts[0]);
    report.watches = nb::cast<uint64_t>(counts[1]);
    report.events = nb::cast<uint64_t>(counts[2]);
    report.dropped = nb::cast<uint64_t>(counts[3]);
    report.errors = nb::cast<uint64_t>(counts[4]);
    std::memcpy(report.name, name.data(), std::min(name.size(), sizeof report.name - 1));
    std::memcpy(report.last_error, last_error.data(),
                std::min(last_error.size(), sizeof report.last_error - 1));
    arena_->set_report(report);
  }

  nb::dict report() {
    Use use(*this);
    Report r = arena_->report();
    const uint64_t now = now_ns();
    auto age = [now](uint64_t then) { return seconds_between(then, now, then); };
    r.name[sizeof r.name - 1] = r.last_error[sizeof r.last_error - 1] = '\0';
    nb::dict d;
    d["alive"] = arena_->segment().reflector_alive();
    d["name"] = cut_str(r.name);
    d["state"] = r.state;
    d["pid"] = r.pid;
    d["heartbeat_age"] = age(r.heartbeat_ns);
    d["contact_age"] = age(r.contact_ns);
    d["event_age"] = age(r.event_ns);
    d["last_error_age"] = age(r.error_ns);
    d["lists"] = r.lists;
    d["watches"] = r.watches;
    d["events"] = r.events;
    d["dropped"] = r.dropped;
    d["errors"] = r.errors;
    d["last_error"] = cut_str(r.last_error);
    check(Status::kOk);
    return d;
  }

  // --- FIFO ---

  // Items are appended to `hand`, not returned: a signal handler that raises in the instant in
  // which a call returns drops the result of the call, and what was taken would be lost with it.
  // The caller, who still has the list, puts it back (put_back).

  void pop(uint64_t max_items, nb::handle timeout, nb::list hand) {
    Use use(*this);
    hand_over(take(max_items, timeout), hand);
  }

  // Without any waiting. True: the oldest item is in `hand`. None: the queue is empty. False: the
  // lock is taken or a repair is due, see settle.
  nb::object poll(nb::list hand) {
    Use use(*this);
    std::vector<Item> items;
    const Status s = arena_->try_pop(1, 0, items);
    if (s == Status::kEmpty) return nb::none();
    if (s == Status::kLockTimeout) return nb::bool_(false);
    check(s);
    hand_over(std::move(items), hand);
    return nb::bool_(true);
  }

  // Undo the pop of what is in `hand`, the last first: each of many then finds its place at the head.
  // No signal handler runs in here.
  void put_back(nb::list hand) {
    Use use(*this);
    for (size_t left = nb::len(hand); left > 0; --left) {
      const nb::object taken = hand[left - 1];
      const nb::object key = taken[0], data = taken[1];
      const nb::bytes value = nb::cast<nb::bytes>(data);
      const Entry entry{key_of(key), {value.data(), value.size()}};
      const uint64_t seq = nb::cast<uint64_t>(taken[2]);
      check(return_item(entry, seq), entry.key.size(), value.size());
    }
  }

  // Wait until the lock was free once, and the arena is whole.
  void settle() {
    Use use(*this);
    check(locked(kLargeBytes, [&](uint64_t deadline) { return arena_->settle(deadline); }));
  }

  // Sleep until the queue may have something: True; False after `timeout` seconds.
  bool wait_ready(nb::handle timeout) {
    Use use(*this);
    const uint64_t deadline = deadline_after(timeout);
    const Status s = blocking([&] { return arena_->wait_ready(deadline); });
    if (s != Status::kOk && s != Status::kEmpty) check(s);
    return s == Status::kOk;
  }

  // As pop: (key, payload, claim, failures) in `hand`, the item in flight. `lease`: seconds or None.
  void claim(nb::handle lease, nb::handle timeout, nb::list hand) {
    Use use(*this);
    const uint64_t deadline = deadline_after(timeout), lease_ns = nanoseconds(lease);
    Item item;
    const nb::object made = nb::cast(new Token(nb::find(*this)), nb::rv_policy::take_ownership);
    Token& token = *nb::inst_ptr<Token>(made);
    taking(deadline, [&](uint64_t lock_deadline) {
      return arena_->try_claim(lease_ns, lock_deadline, item, token.claim);
    });
    token.ended = false;  // if there is no memory for the rest, it is released
    hand.append(nb::make_tuple(to_str(item.key()), to_bytes(item.value()), made,
                               token.claim.failures));
  }

  // False: the claim is no longer ours, and nothing has happened. No signal handler runs in here.
  bool end_claim(Token& token, int how) {
    Use use(*this);
    bool ours = false;
    check(unsignalled([&](uint64_t deadline) {
      return arena_->end_claim(token.claim, static_cast<Arena::End>(how), deadline, ours);
    }));
    token.ended = true;
    return ours;
  }

  // The same, and the key is dirty again in `delay` seconds: of a work queue.
  bool retry_claim(Token& token, double delay) {
    Use use(*this);
    const uint64_t delay_ns = delay > 0 ? nanoseconds(nb::float_(delay)) : 0;
    bool ours = false;
    check(unsignalled([&](uint64_t deadline) {
      return arena_->retry_claim(token.claim, delay_ns, deadline, ours);
    }));
    token.ended = true;
    return ours;
  }

  bool renew(const Token& token, nb::handle lease) {
    Use use(*this);
    const uint64_t lease_ns = nanoseconds(lease);
    bool ours = false;
    check(unsignalled(
        [&](uint64_t deadline) { return arena_->renew(token.claim, lease_ns, deadline, ours); }));
    return ours;
  }

  // Nobody can end the claim any more. In a destructor: an error may be on its way.
  void let_go(Token& token) noexcept {
    // A child after a fork owns nothing, and a closed handle neither.
    if (closed() || arena_->segment().owner_id() == 0) return;
    nb::error_scope pending;
    try {
      end_claim(token, static_cast<int>(Arena::End::kReleased));
    } catch (...) {  // then it fails, as soon as this handle is closed
    }
  }

  // (key, payload, failures, pid, seconds left of the lease or None, seconds since the claim) of what
  // is in flight, or of the dead letters, and then since they are so.
  nb::list held(bool dead) {
    Use use(*this);
    const auto found = held_as(dead ? Table::Sought::kDead : Table::Sought::kInFlight);
    const uint64_t now = now_ns();
    nb::list result;
    for (const Arena::Held& one : found) {
      result.append(nb::make_tuple(to_str(one.item.key()), to_bytes(one.item.value()),
                                   one.failures, one.pid,
                                   seconds_between(now, one.deadline_ns, one.deadline_ns),
                                   seconds_between(one.since_ns, now, now)));
    }
    return result;
  }

  // --- WorkQueue ---

  // Make `key` dirty, now or `delay` seconds from now. False: the queue is shut down.
  bool enqueue(nb::handle key, double delay) {
    Use use(*this);
    const uint64_t delay_ns = delay > 0 ? nanoseconds(nb::float_(delay)) : 0;
    const uint32_t priority = priority_of(key);
    bool open = false;
    with_key(key, [&](std::string_view text, uint64_t deadline) {
      return arena_->enqueue(text, priority, delay_ns, deadline, open);
    });
    return open;
  }

  // How often `key` had failed before this failure.
  uint64_t count_failure(nb::handle key) {
    Use use(*this);
    uint64_t before = 0;
    with_key(key, [&](std::string_view text, uint64_t deadline) {
      return arena_->count_failure(text, deadline, before);
    });
    return before;
  }

  uint64_t failures(nb::handle key) {
    Use use(*this);
    uint64_t count = 0;
    with_key(key, [&](std::string_view text, uint64_t deadline) {
      return arena_->failures(text, deadline, count);
    });
    return count;
  }

  void forget(nb::handle key) {
    Use use(*this);
    with_key(key, [&](std::string_view text, uint64_t deadline) {
      return arena_->forget(text, deadline);
    });
  }

  // Take a token of the bucket, which gets `rate` a second up to `burst`: the seconds until it is
  // there.
  double take_token(double rate, uint64_t burst) {
    Use use(*this);
    if (!(rate > 0) || burst == 0) {
      throw nb::value_error("a bucket needs a rate above 0 and a burst of 1 token or more");
    }
    const uint64_t interval_ns = nanoseconds(nb::float_(1.0 / rate));
    uint64_t wait_ns = 0;
    check(locked(0, [&](uint64_t deadline) {
      return arena_->take_token(interval_ns, burst, deadline, wait_ns);
    }));
    return static_cast<double>(wait_ns) * 1e-9;
  }

  // (key, seconds until it is due, failures) of what waits for its time.
  nb::list delayed() {
    Use use(*this);
    const auto found = held_as(Table::Sought::kParked);
    const uint64_t now = now_ns();
    nb::list result;
    for (const Arena::Held& one : found) {
      const uint64_t due = one.deadline_ns;
      result.append(
          nb::make_tuple(to_str(one.item.key()), seconds_between(now, due, due), one.failures));
    }
    return result;
  }

  bool idle() {
    Use use(*this);
    bool idle = false;
    check(locked(0, [&](uint64_t deadline) { return arena_->idle(deadline, idle); }));
    return idle;
  }

  uint32_t queue_state() {
    return whole(
        [&] { return arena_->segment().meta().shut_down.load(std::memory_order_acquire); });
  }

  bool settle_dead(nb::handle key, bool drop) {
    Use use(*this);
    auto text = utf8(key);
    if (!text || text->empty() || text->size() > kMaxKeySize) return false;
    bool was_there = false;
    check(locked(0, [&](uint64_t deadline) {
      return arena_->settle_dead(*text, drop, deadline, was_there);
    }));
    return was_there;
  }

  uint64_t waiting() {
    Use use(*this);
    if (arena_->segment().writable() && arena_->is_due()) {
      check(locked(0, [&](uint64_t deadline) { return arena_->look(deadline); }));
    }
    const uint64_t count = arena_->waiting();
    check(count <= arena_->segment().geometry().max_records ? Status::kOk : Status::kCorrupt);
    return count;
  }

  void shut_down(bool immediate) {
    Use use(*this);
    check(locked(0, [&](uint64_t deadline) {
      return arena_->shut_down(Arena::ShutDown::kEnd, immediate, deadline);
    }));
  }
  void drain() {
    Use use(*this);
    check(locked(0, [&](uint64_t deadline) {
      return arena_->shut_down(Arena::ShutDown::kDrain, false, deadline);
    }));
  }

  // --- both ---

  uint64_t size() {
    Use use(*this);
    const uint64_t size = arena_->size();
    check(size <= arena_->segment().geometry().max_records ? Status::kOk : Status::kCorrupt);
    return size;
  }
  uint64_t version() {
    return whole([&] { return arena_->version(); });
  }
  bool has_synced() {
    return whole([&] { return arena_->has_synced(); });
  }
  nb::object resource_version() {
    return to_str(whole([&] { return arena_->resource_version(); }));
  }

  // The version as soon as it is not `version`; after `timeout` seconds the version as it is.
  uint64_t wait_change(uint64_t version, nb::handle timeout) {
    Use use(*this);
    const uint64_t deadline = deadline_after(timeout);
    uint64_t now = version;
    for (;;) {
      const Status s = blocking([&] { return arena_->wait_change(version, deadline, now); });
      if (s == Status::kOk || s == Status::kEmpty) return now;
      if (s != Status::kBusy) check(s);
      handle_signals();
    }
  }

  // `change`: a named tuple of type, key, object and old.
  nb::object changes(nb::type_object change);

  nb::dict stats() {
    Use use(*this);
    Segment& segment = arena_->segment();
    const Meta& m = segment.meta();
    constexpr auto relaxed = std::memory_order_relaxed;
    report_reads();
    // No lock: who looks at an arena in trouble must not wait for it.
    const HeapFigures heap = arena_->table().heap().figures();
    const uint64_t oldest = arena_->oldest_time(), now = now_ns();
    nb::dict d;
    d["entries"] = arena_->size();
    d["capacity_bytes"] = segment.capacity();
    d["committed_bytes"] = segment.committed();
    d["used_bytes"] = m.used_bytes.load(relaxed);
    d["free_bytes"] = heap.free_bytes;
    d["free_blocks"] = heap.free_blocks;
    d["largest_free_bytes"] = heap.largest_free;
    d["version"] = arena_->version();
    d["indexes"] = arena_->table().root().indexes;
    d["index_values"] = m.index_values.load(relaxed);
    d["index_slots"] = uint64_t{1} << arena_->table().root().log2;
    d["writes"] = m.writes.load(relaxed);
    d["deletes"] = m.deletes.load(relaxed);
    d["pops"] = m.pops.load(relaxed);
    d["in_flight"] = m.in_flight.count.load(relaxed);
    uint64_t delayed = 0;
    for (const RecordList& list : m.timers) delayed += list.count.load(relaxed);
    d["delayed"] = delayed;
    d["dead_letters"] = m.dead.count.load(relaxed);
    d["repairs"] = m.repairs.load(relaxed);
    d["last_repair_ns"] = m.last_repair_ns.load(relaxed);
    d["created_unix_ns"] = segment.header().created_unix_ns;
    d["reads"] = segment.control().reads.load(relaxed);
    d["read_misses"] = segment.control().read_misses.load(relaxed);
    d["oldest_age"] = seconds_between(oldest, now, oldest);
    const uint64_t claimed = arena_->oldest_claim_ns();
    d["oldest_claim_age"] = seconds_between(claimed, now, claimed);
    d["hits"] = hits_;
    d["misses"] = misses_;
    d["cached_bytes"] = cached_bytes_;
    check(Status::kOk);
    return d;
  }

  // None if `set` is 0: there is no such time.
  static nb::object seconds_between(uint64_t from, uint64_t to, uint64_t set) {
    if (set == 0) return nb::none();
    return nb::float_(from < to ? static_cast<double>(to - from) * 1e-9 : 0.0);
  }

  // (pid, items popped) of the living handles that have ever had the lock.
  nb::list workers() {
    Use use(*this);
    nb::list result;
    for (const auto& [pid, pops] : arena_->segment().owners()) {
      result.append(nb::make_tuple(pid, pops));
    }
    check(Status::kOk);
    return result;
  }

  std::vector<std::string> check_invariants() {
    Use use(*this);
    std::vector<std::string> violations;
    check(locked(kLargeBytes,
                 [&](uint64_t deadline) { return arena_->check(deadline, violations); }));
    return violations;
  }

  void testing_repair() {
    Use use(*this);
    check(locked(kLargeBytes, [&](uint64_t deadline) { return arena_->testing_repair(deadline); }));
  }

 private:
  // Keeps the map while a call is inside, also when another thread closes the handle meanwhile:
  // the threads that are, with the GIL held. (Not a count, because in a forked child the calls of
  // the other threads never return.)
  class Use {
   public:
    explicit Use(Handle& handle) : handle_(handle) {
      if (handle.closed()) fail(Status::kClosed, handle.name_, nb::dict());
      Segment& segment = handle.arena_->segment();
      if (segment.unlinked() && segment.superseded()) handle.check(Status::kSuperseded);
      handle.inside_.push_back(pthread_self());
    }
    ~Use() {
      auto& inside = handle_.inside_;
      auto ours = inside.end() - 1;
      while (!pthread_equal(*ours, pthread_self())) --ours;
      inside.erase(ours);
      handle_.release_if_closed();
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Handle& handle_;
  };

  struct Batch {
    std::vector<Entry> entries;
    std::vector<nb::object> owners;  // keep what entries point to, whatever happens to the list
    uint64_t bytes = 0;
  };

  void release_if_closed() {
    if (!arena_ || !arena_->closed()) return;
    if (pid_ != getpid()) {
      pid_ = getpid();
      std::erase_if(inside_, [](pthread_t t) { return !pthread_equal(t, pthread_self()); });
    }
    if (!inside_.empty()) return;
    arena_.reset();
    cache_.clear();
    cached_bytes_ = 0;
    shortcuts_.clear();
    last_ = Last();
  }

  void check(Status status, uint64_t key_size = 0, uint64_t value_size = 0) {
    if (arena_ && arena_->segment().lost()) status = Status::kLost;  // whatever it seemed to be
    if (status == Status::kOk) return;
    const int error = errno;
    nb::dict context;
    context["errno"] = error;
    context["key_size"] = key_size;
    context["value_size"] = value_size;
    context["lock_timeout"] = lock_timeout_;
    if (arena_) {
      Segment& segment = arena_->segment();
      context["kind"] = kind_name(segment.kind());
      context["capacity"] = segment.capacity();
      context["committed"] = segment.committed();
      context["pid"] =
          segment.owner_pid(lock_owner(segment.control().lock.load(std::memory_order_relaxed)));
    }
    fail(status, name_, context);
  }

  static void check_size(std::string_view resource_version) {
    if (resource_version.size() <= kResourceVersionSize) return;
    PyErr_Format(PyExc_ValueError, "a resource version has at most %zu bytes, not %zu",
                 kResourceVersionSize, resource_version.size());
    throw nb::python_error();
  }

  static void set_terms(Entry& entry, const nb::bytes& terms, uint32_t indexes) {
    entry.terms = {terms.c_str(), terms.size()};
    entry.indexes = indexes;
    if (!Postings::measure(entry.terms, indexes, entry.terms_size)) {
      throw nb::value_error("malformed index values");
    }
  }

  // Text that may have been cut in the middle of a character.
  static nb::object cut_str(const char* text) {
    return nb::steal(
        PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(std::strlen(text)), "replace"));
  }

  // Text of the segment. All that was stored is UTF-8; something else wrote what is not.
  nb::object to_str(std::string_view text) {
    PyObject* s = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
    if (s == nullptr) {
      if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) throw nb::python_error();
      PyErr_Clear();
      check(Status::kCorrupt);
    }
    return nb::steal(s);
  }

  // Between two slices of a wait: a signal may have come when no system call could be interrupted
  // by it. Never after something was taken, which would then be lost.
  static void handle_signals() {
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }

  template <typename Call>
  Status blocking(Call&& call) {
    for (;;) {
      Status s;
      {
        WithoutGil nogil;
        s = call();
      }
      if (arena_->segment().lost()) return Status::kLost;
      if (s != Status::kOk && arena_->segment().superseded()) return Status::kSuperseded;
      if (s != Status::kInterrupted) return s;
      handle_signals();
    }
  }

  // What a call without a status says of an arena whose pages are there.
  template <typename Call>
  std::invoke_result_t<Call> whole(Call&& call) {
    Use use(*this);
    auto result = call();
    check(Status::kOk);
    return result;
  }

  // `call(deadline)` takes the arena's lock.
  template <typename Call>
  Status locked(uint64_t bytes, Call&& call) {
    if (bytes < kLargeBytes) {
      const Status s = call(0);
      if (s != Status::kLockTimeout) return s;
    }
    const uint64_t deadline = deadline_after(lock_timeout_);
    return blocking([&] { return call(deadline); });
  }

  std::string_view key_of(nb::handle key) {
    auto text = utf8(key);
    if (!text) {
      nb::dict context;
      context["key"] = nb::borrow(key);
      fail(Status::kKeySize, name_, context);
    }
    return *text;
  }

  template <typename Call>
  void with_key(nb::handle key, Call&& call) {
    const std::string_view text = key_of(key);
    check(locked(0, [&](uint64_t deadline) { return call(text, deadline); }), text.size());
  }

  // Before the lock is taken, like all that runs Python.
  uint32_t priority_of(nb::handle key) {
    if (priority_func_.is_none()) return 0;
    const nb::object given = priority_func_(key);
    const long priority = PyLong_CheckExact(given.ptr()) ? PyLong_AsLong(given.ptr()) : -1;
    if (priority < 0 || priority >= static_cast<long>(kPriorities)) {
      PyErr_Clear();
      nb::dict context;
      context["key"] = nb::borrow(key);
      context["priority"] = given;
      context["most"] = kPriorities - 1;
      fail(Status::kPriority, name_, context);
    }
    return static_cast<uint32_t>(priority);
  }

  Batch collect(nb::list entries, uint32_t indexes) {
    Batch batch;
    batch.entries.reserve(nb::len(entries));
    batch.owners.reserve(3 * nb::len(entries));
    for (nb::handle given : entries) {
      nb::tuple parts = nb::cast<nb::tuple>(given);
      nb::object key = parts[0];
      nb::bytes data = nb::cast<nb::bytes>(parts[1]);
      const std::string_view text = key_of(key);
      if (text.empty() || text.size() > kMaxKeySize) check(Status::kKeySize, text.size());
      Entry entry{text, {data.data(), data.size()}};
      entry.indexes = indexes;
      entry.priority = priority_of(key);
      if (nb::len(parts) > 2) {
        nb::bytes terms = nb::cast<nb::bytes>(parts[2]);
        set_terms(entry, terms, indexes);
        batch.owners.push_back(std::move(terms));
      }
      batch.entries.push_back(entry);
      batch.bytes += text.size() + data.size();
      batch.owners.push_back(std::move(key));
      batch.owners.push_back(std::move(data));
    }
    return batch;
  }

  bool copy_slowly(std::string_view key, Item& item) {
    const Status s =
        locked(kLargeBytes, [&](uint64_t deadline) { return arena_->copy(key, deadline, item); });
    if (s == Status::kMiss) return false;
    check(s);
    return true;
  }

  // The payload of `key` in `data`; not even copied if `use_cache` and its object is known.
  bool read(std::string_view key, Hit& hit, nb::object& data, bool use_cache) {
    for (int tries = 0; tries < kReadTries; ++tries) {
      data = nb::object();  // what a try before this one has copied was torn
      const Status s = arena_->find(key, hit);
      if (s == Status::kMiss) return false;
      if (s == Status::kBusy) continue;
      check(s);
      if (use_cache && cached(raw(hit.record), hit.state, true)) return true;
      PyObject* made = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(hit.value_size));
      if (made == nullptr) throw nb::python_error();
      data = nb::steal(made);
      bool whole;
      if (hit.value_size < kLargeBytes) {
        whole = arena_->table().read_value(hit, PyBytes_AS_STRING(made));
      } else {
        WithoutGil nogil;
        whole = arena_->table().read_value(hit, PyBytes_AS_STRING(made));
      }
      if (whole) return true;
    }
    Item item;
    data = nb::object();
    if (!copy_slowly(key, item)) return false;
    data = to_bytes(item.value());
    hit = Hit();  // nothing to remember it by
    return true;
  }

  // The key is for the error message. `previous`: what we had of this entry before, or None. An
  // update takes another record, so that is not where the new version will be.
  nb::object decode(nb::handle data, nb::handle key, const nb::object& previous) {
    if (decode_.is_none()) return nb::borrow(data);
    try {
      return decode_(data, key, previous);
    } catch (const std::exception&) {
      throw;
    } catch (...) {  // the interpreter ends while this thread runs Python
      wait_for_the_end();
    }
  }

  // --- the way back to a known object, past hashing and probing ---
  //
  // For a str by which an object was found before: where its index word is. If that word and the
  // state of the record it names are as they were, a lookup would find the same again
  // (Table::still), so the object is the answer. A line of private memory, the word, the record.
  // No Python code, no waiting: so without Use.

  PyObject* by_shortcut(nb::handle key) {
    if (closed()) return nullptr;
    Segment& segment = arena_->segment();
    // What is wrong with these the long way says.
    if (segment.lost() || (segment.unlinked() && segment.superseded())) return nullptr;
    const Shortcut* s = shortcut(key);
    if (s == nullptr || s->slot == Shortcut::kNowhere) return nullptr;
    Cached& c = cache_[s->record];
    Hit hit;
    hit.record = RecordNo{s->record};
    hit.state = c.state;
    hit.root = shortcut_root_;
    hit.slot = s->slot;
    if (!arena_->still(hit)) return nullptr;
    ++hits_;
    count_read();
    c.recent = true;
    return c.object.ptr();
  }

  // That of this str, if what it leads to is still in the cache, of this version of its entry or an
  // earlier one. Open addressing; what leads nowhere by now stays until the next `rehash`.
  Shortcut* shortcut(nb::handle key) {
    if (shortcuts_.empty() || !PyUnicode_CheckExact(key.ptr())) return nullptr;
    const Py_hash_t hash = PyObject_Hash(key.ptr());  // a str keeps it, and it is never -1
    for (size_t at = home(hash); shortcuts_[at].hash != -1; at = next(at)) {
      Shortcut& s = shortcuts_[at];
      if (s.hash == hash && known(s) && same_text(cache_[s.record].key, key)) return &s;
    }
    return nullptr;
  }
  bool known(const Shortcut& s) const {
    return s.record < cache_.size() && cache_[s.record].object.is_valid();
  }
  size_t home(Py_hash_t hash) const { return static_cast<size_t>(hash) & (shortcuts_.size() - 1); }
  size_t next(size_t at) const { return (at + 1) & (shortcuts_.size() - 1); }

  void make_shortcut(nb::handle key, const Hit& hit) {
    if (!PyUnicode_CheckExact(key.ptr()) || hit.slot >= Shortcut::kNowhere) return;
    if (hit.root != shortcut_root_) {
      for (Shortcut& s : shortcuts_) s.slot = Shortcut::kNowhere;
      shortcut_root_ = hit.root;
    }
    Shortcut* s = shortcut(key);
    if (s == nullptr) {
      if (2 * (shortcuts_used_ + 1) > shortcuts_.size()) rehash();
      s = &new_shortcut(PyObject_Hash(key.ptr()));
    }
    s->record = raw(hit.record);
    s->slot = static_cast<uint32_t>(hit.slot);
  }

  Shortcut& new_shortcut(Py_hash_t hash) {
    size_t at = home(hash);
    while (shortcuts_[at].hash != -1) at = next(at);
    ++shortcuts_used_;
    shortcuts_[at].hash = hash;
    return shortcuts_[at];
  }

  // Without those that lead nowhere, or to the entry of another key; then a quarter full at most.
  void rehash() {
    std::vector<Shortcut> kept;
    for (const Shortcut& s : shortcuts_) {
      if (s.hash == -1 || !known(s)) continue;
      const nb::object& key = cache_[s.record].key;
      if (PyUnicode_CheckExact(key.ptr()) && PyObject_Hash(key.ptr()) == s.hash) kept.push_back(s);
    }
    shortcuts_ = std::vector<Shortcut>(std::bit_ceil(4 * kept.size() + 16));
    shortcuts_used_ = 0;
    for (const Shortcut& s : kept) new_shortcut(s.hash) = s;
  }

  // What was known by this str before its entry changed, or None.
  nb::object last_version(nb::handle key) {
    const Shortcut* s = shortcut(key);
    return s == nullptr ? nb::none() : cache_[s->record].object;
  }

  // An update takes the record that the one before it gave up, so the last version of another entry
  // may stand in the cache where `record` of `key` goes. It takes the place of the last version of
  // `key`, which nobody will ask for again. (No record has its state there, so nobody gets it.)
  void make_way(uint32_t record, nb::handle key) {
    Shortcut* ours = shortcut(key);
    if (ours == nullptr || ours->record == record || !cache_[record].object.is_valid()) return;
    Shortcut* theirs = shortcut(cache_[record].key);
    if (theirs == nullptr || theirs->record != record) return;
    std::swap(cache_[record], cache_[ours->record]);
    std::swap(theirs->record, ours->record);
  }

  static bool same_text(nb::handle a, nb::handle b) {
    if (a.is(b)) return true;
    return PyUnicode_CheckExact(a.ptr()) &&
           PyUnicode_GET_LENGTH(a.ptr()) == PyUnicode_GET_LENGTH(b.ptr()) &&
           PyUnicode_KIND(a.ptr()) == PyUnicode_KIND(b.ptr()) &&
           std::memcmp(PyUnicode_DATA(a.ptr()), PyUnicode_DATA(b.ptr()),
                       static_cast<size_t>(PyUnicode_GET_LENGTH(a.ptr())) *
                           static_cast<size_t>(PyUnicode_KIND(a.ptr()))) == 0;
  }

  void remember(RecordNo record, uint64_t state, nb::object key, nb::object object, uint64_t size) {
    if (object.is_valid() && size > cache_limit_) return;
    if (raw(record) >= cache_.size()) cache_.resize(raw(record) + 1);
    make_way(raw(record), key);
    Cached& c = cache_[raw(record)];
    Cached old = std::move(c);  // dropped last: a decref may run Python
    if (old.object.is_valid()) cached_bytes_ -= old.size;
    c = Cached{state, std::move(key), std::move(object), size, true};
    if (!c.object.is_valid()) return;
    cached_bytes_ += size;
    for (size_t looked = 0; cached_bytes_ > cache_limit_ && looked < 2 * cache_.size(); ++looked) {
      clock_hand_ = (clock_hand_ + 1) % cache_.size();
      Cached& candidate = cache_[clock_hand_];
      if (!candidate.object.is_valid() || clock_hand_ == raw(record)) continue;
      if (candidate.recent) {
        candidate.recent = false;
        continue;
      }
      cached_bytes_ -= candidate.size;
      Cached evicted = std::move(candidate);
      candidate = Cached{};
      ++evictions_;
      Listing dropped = std::exchange(last_.listing, Listing());
    }
  }

  std::vector<Item> take(uint64_t max_items, nb::handle timeout) {
    std::vector<Item> items;
    taking(deadline_after(timeout), [&](uint64_t lock_deadline) {
      return arena_->try_pop(max_items, lock_deadline, items);
    });
    return items;
  }

  std::vector<Arena::Held> held_as(Table::Sought sought) {
    std::vector<Arena::Held> found;
    check(locked(kLargeBytes,
                 [&](uint64_t deadline) { return arena_->held(sought, true, deadline, found); }));
    return found;
  }

  static uint64_t nanoseconds(nb::handle lease) {
    if (lease.is_none()) return 0;
    return static_cast<uint64_t>(std::clamp(nb::cast<double>(lease), 1e-9, 1e9) * 1e9);
  }

  // `attempt` until it has something, or there will be nothing, or `deadline`.
  template <typename Attempt>
  void taking(uint64_t deadline, Attempt&& attempt) {
    for (;;) {
      Status s = locked(0, attempt);
      if (s == Status::kOk) return;
      if (s == Status::kEmpty && deadline > 0) {
        s = blocking([&] { return arena_->wait_ready(deadline); });
        if (s == Status::kOk) {
          if (arena_->segment().superseded()) check(Status::kSuperseded);
          handle_signals();
          continue;
        }
      }
      check(s);
    }
  }

  void hand_over(std::vector<Item> items, nb::list hand) {
    size_t given = 0;
    try {
      for (; given < items.size(); ++given) {
        const Item& item = items[given];
        hand.append(nb::make_tuple(to_str(item.key()), to_bytes(item.value()), item.seq));
      }
    } catch (...) {  // no memory for the Python objects
      for (size_t left = items.size(); left > given; --left) {
        const Item& item = items[left - 1];
        (void)return_item({item.key(), {item.value().data(), item.value_size}}, item.seq);
      }
      throw;
    }
  }

  Status return_item(const Entry& entry, uint64_t seq) {
    bool wrote = false;
    return unsignalled(
        [&](uint64_t deadline) { return arena_->put_back(entry, seq, deadline, wrote); });
  }

  // Past signals, whose handlers could raise: what this ends must not end half way.
  template <typename Call>
  Status unsignalled(Call&& call) {
    const uint64_t deadline = deadline_after(lock_timeout_);
    WithoutGil nogil;
    for (;;) {
      const Status s = call(deadline);
      if (s != Status::kInterrupted) return s;
    }
  }

  nb::list queue_snapshot(What what) {
    std::vector<Item> items;
    check(locked(kLargeBytes, [&](uint64_t deadline) {
      items.clear();
      return arena_->queued(what != What::kKeys, deadline, items);
    }));
    nb::list result;
    for (const Item& item : items) {
      nb::object key = to_str(item.key());
      if (what == What::kKeys) {
        result.append(key);
        continue;
      }
      nb::object object = decode(to_bytes(item.value()), key, nb::none());
      result.append(what == What::kValues ? object : nb::object(nb::make_tuple(key, object)));
    }
    return result;
  }

  struct Live {
    uint32_t record;
    uint64_t state;
  };

  nb::list snapshot(What what) {
    Use use(*this);
    if (has_queue(arena_->segment().kind())) return queue_snapshot(what);
    // Taken, not locked: the GIL is let go meanwhile, and a thread that lists at the same time, or
    // a child that is forked, finds nothing known and looks at everything.
    Last last = std::exchange(last_, Last());
    const uint64_t evictions = evictions_;
    nb::object result;
    if (what == What::kValues && last.listing.objects.is_valid()) result = relist(last);
    // The first try copies what is new to the view. If then something is missing that the view
    // knew and the cache has lost, the second looks at everything; the third copies everything.
    for (int tries = 0; !result.is_valid(); ++tries) {
      std::vector<uint64_t> have;
      if (tries < 2) {
        have.reserve(cache_.size());
        for (const Cached& c : cache_) {
          have.push_back(what == What::kKeys || c.object.is_valid() ? c.state : 0);
        }
      }
      std::vector<Live> live;
      std::unordered_map<uint32_t, Item> copies;
      if (tries > 0) last.view = View{};
      check(refresh(last.view, what != What::kKeys, have, live, copies));
      result = build(what, live, copies);
      if (result.is_valid() && what == What::kValues && all_cached(live)) {
        keep_listing(last, result, live);
      }
    }
    report_reads();
    if (evictions != evictions_) last.listing = Listing();  // the cache has let go of some of it
    last_ = std::move(last);
    return nb::cast<nb::list>(result);
  }

  // What the cache has of a record in this state: its key, and with `object` its object too.
  bool cached(uint32_t record, uint64_t state, bool object) const {
    return record < cache_.size() && cache_[record].state == state &&
           (!object || cache_[record].object.is_valid());
  }

  bool all_cached(const std::vector<Live>& live) const {
    return std::all_of(live.begin(), live.end(),
                       [&](const Live& l) { return cached(l.record, l.state, true); });
  }

  static void keep_listing(Last& last, nb::handle objects, const std::vector<Live>& live) {
    Listing& kept = last.listing;
    kept.objects = copy_of(objects);  // the caller may change its own
    kept.records.clear();
    kept.positions.assign(last.view.states.size(), Listing::kNowhere);
    for (const auto& [record, state] : live) {
      kept.positions[record] = static_cast<uint32_t>(kept.records.size());
      kept.records.push_back(record);
    }
    last.view.touched.clear();
    last.view.all = false;
  }

  static nb::object copy_of(nb::handle list) {
    // Most of the time goes into waiting for the objects' lines, whose counts are written: so ahead.
    constexpr Py_ssize_t kAhead = 16;
    const Py_ssize_t size = PyList_GET_SIZE(list.ptr());
    PyObject* copy = PyList_New(size);
    if (copy == nullptr) throw nb::python_error();
    for (Py_ssize_t i = 0; i < size; ++i) {
      if (i + kAhead < size) __builtin_prefetch(PyList_GET_ITEM(list.ptr(), i + kAhead), 1);
      PyList_SET_ITEM(copy, i, Py_NewRef(PyList_GET_ITEM(list.ptr(), i)));
    }
    return nb::steal(copy);
  }

  // The last list, with what has changed since. Null if too much has: the view then is up to date,
  // and the listing gone.
  nb::object relist(Last& last) {
    View& view = last.view;
    if (!arena_->current(view) || !view.touched.empty() || view.all) {
      std::unordered_map<uint32_t, Item> copies;
      auto want = [&](RecordNo, uint64_t) { return !view.all; };
      const uint64_t deadline = deadline_after(lock_timeout_);
      check(blocking([&] { return arena_->refresh(view, want, true, deadline, copies); }));
      if (view.all || !patch(last.listing, view, copies)) {
        last.listing = Listing();
        return nb::object();
      }
      view.touched.clear();
    }
    check(Status::kOk);
    hits_ += last.listing.records.size();
    return copy_of(last.listing.objects);
  }

  // False: some object is neither in the cache nor copied.
  bool patch(Listing& listing, const View& view, std::unordered_map<uint32_t, Item>& copies) {
    listing.positions.resize(view.states.size(), Listing::kNowhere);
    nb::dict previous;  // by key, of what has changed
    for (uint32_t record : view.touched) {
      if (record >= cache_.size() || cache_[record].state == view.states[record]) continue;
      const Cached& known = cache_[record];
      if (known.object.is_valid()) previous[known.key] = known.object;
    }
    for (uint32_t record : view.touched) {
      const uint64_t state = view.states[record];
      uint32_t& position = listing.positions[record];
      if (state == 0) {
        if (position != Listing::kNowhere) unlist(listing, record);
        continue;
      }
      if (auto copied = copies.find(record); copied != copies.end()) {
        nb::object key = to_str(copied->second.key()), data = to_bytes(copied->second.value());
        copies.erase(copied);
        ++misses_;
        nb::object object = decode(data, key, previous.get(key, nb::none()));
        remember(RecordNo{record}, state, key, object, nb::len(data));
      }
      if (!cached(record, state, true)) return false;
      PyObject* object = nb::object(cache_[record].object).release().ptr();
      if (position == Listing::kNowhere) {
        const int appended = PyList_Append(listing.objects.ptr(), object);
        Py_DECREF(object);
        if (appended != 0) throw nb::python_error();
        position = static_cast<uint32_t>(listing.records.size());
        listing.records.push_back(record);
      } else {
        PyList_SetItem(listing.objects.ptr(), position, object);  // steals it
      }
    }
    return true;
  }

  // The last of the list takes the place of what goes.
  static void unlist(Listing& listing, uint32_t record) {
    const uint32_t position = listing.positions[record], last = listing.records.back();
    PyObject* list = listing.objects.ptr();
    const Py_ssize_t end = PyList_GET_SIZE(list) - 1;
    PyObject* moved = PyList_GET_ITEM(list, end);
    Py_INCREF(moved);
    PyList_SetItem(list, position, moved);  // steals it
    if (PyList_SetSlice(list, end, end + 1, nullptr) != 0) throw nb::python_error();
    listing.records[position] = last;
    listing.positions[last] = position;
    listing.records.pop_back();
    listing.positions[record] = Listing::kNowhere;
  }

  static std::vector<Live> live_of(const std::vector<Arena::Found>& found) {
    std::vector<Live> live;
    live.reserve(found.size());
    for (const auto& [record, state] : found) live.push_back({raw(record), state});
    return live;
  }

  Status refresh(View& view, bool with_values, const std::vector<uint64_t>& have,
                 std::vector<Live>& live, std::unordered_map<uint32_t, Item>& copies) {
    auto want = [&](RecordNo record, uint64_t state) {
      return raw(record) >= have.size() || have[raw(record)] != state;
    };
    const uint64_t deadline = deadline_after(lock_timeout_);
    if (!arena_->current(view)) {
      const Status s = blocking(
          [&] { return arena_->refresh(view, want, with_values, deadline, copies); });
      if (s != Status::kOk) return s;
    }
    live.reserve(view.live);
    for (uint32_t i = 0; i < view.states.size(); ++i) {
      if (view.states[i] != 0) live.push_back({i, view.states[i]});
    }
    return Status::kOk;
  }

  // Null if an object is neither in the cache nor copied.
  nb::object build(What what, const std::vector<Live>& live,
                   std::unordered_map<uint32_t, Item>& copies) {
    nb::object result = nb::steal(PyList_New(static_cast<Py_ssize_t>(live.size())));
    if (!result.is_valid()) throw nb::python_error();
    Py_ssize_t at = 0;
    for (const auto& [record, state] : live) {
      nb::object key, object;
      if (auto copied = copies.find(record); copied != copies.end()) {
        key = to_str(copied->second.key());
        if (what != What::kKeys) {
          nb::object data = to_bytes(copied->second.value());
          copies.erase(copied);
          ++misses_;
          object = decode(data, key, last_version(key));
          remember(RecordNo{record}, state, key, object, nb::len(data));
        } else {
          remember(RecordNo{record}, state, key, nb::object(), 0);
        }
      } else if (cached(record, state, what != What::kKeys)) {
        key = cache_[record].key;
        object = cache_[record].object;
        if (what != What::kKeys) ++hits_;
        cache_[record].recent = true;
      } else {
        return nb::object();
      }
      nb::object element = what == What::kKeys     ? std::move(key)
                           : what == What::kValues ? std::move(object)
                                                   : nb::object(nb::make_tuple(key, object));
      PyList_SET_ITEM(result.ptr(), at++, element.release().ptr());
    }
    return result;
  }

  // Tell the segment how often this handle was read: every kReadsReported calls, so that it costs
  // the reads nothing. What a killed process had not told is lost.
  void count_read() {
    if (--unreported_ == 0) [[unlikely]] report_reads();
  }
  void report_reads() {
    unreported_ = kReadsReported;
    Control& c = arena_->segment().control();
    const uint64_t reads = hits_ + misses_ + raw_reads_;
    c.reads.fetch_add(reads - reported_reads_, std::memory_order_relaxed);
    c.read_misses.fetch_add(misses_ - reported_misses_, std::memory_order_relaxed);
    reported_reads_ = reads;
    reported_misses_ = misses_;
  }

  std::unique_ptr<Arena> arena_;
  std::string name_;
  nb::object decode_;
  nb::object priority_func_;  // of a key; None: all are alike
  uint64_t cache_limit_;
  double lock_timeout_;
  std::vector<pthread_t> inside_;
  pid_t pid_ = getpid();
  std::vector<Cached> cache_;
  uint64_t cached_bytes_ = 0;
  size_t clock_hand_ = 0;
  uint64_t hits_ = 0, misses_ = 0, raw_reads_ = 0, evictions_ = 0;
  uint32_t unreported_ = kReadsReported;
  uint64_t reported_reads_ = 0, reported_misses_ = 0;
  std::vector<Shortcut> shortcuts_;  // a power of two of them, at most half of them used
  size_t shortcuts_used_ = 0;
  uint64_t shortcut_root_ = 0;
  Last last_;
};

Token::~Token() {
  if (!ended) nb::inst_ptr<Handle>(arena)->let_go(*this);
}

// The changes of a Store for one reader. `given_` is what the reader has been given, by record
// number; `view_` is what the arena holds; their difference is given next. So nothing is missed
// whatever happens to the view: without one, all entries are compared.
//
// Whoever is in `next` works on both. Meanwhile the GIL is let go, and Python code runs (the codec,
// the collector), so that another thread may fork: therefore the view is taken for that time, as in
// Handle::snapshot, and `given_` changes in one go, in which nothing can fail and no Python runs.
//
// What is given is appended to a list of the caller's, as in Handle::pop, and for its reason.
class Changes {
 public:
  Changes(nb::object arena, nb::type_object change)
      : arena_(std::move(arena)), change_(std::move(change)) {
    const auto* kind = reinterpret_cast<PyTypeObject*>(change_.ptr());
    if (!PyType_IsSubtype(const_cast<PyTypeObject*>(kind), &PyTuple_Type) ||
        kind->tp_basicsize != PyTuple_Type.tp_basicsize) {
      throw nb::type_error("a change is a named tuple");
    }
  }

  // Wait until there are changes, `timeout` seconds at most. They are put into `hand`, which is
  // empty, the last first: pop() then gives them in their order, and a change is the caller's or
  // still in the list at every instant.
  void next(nb::handle timeout, nb::list hand) {
    const pid_t pid = getpid();
    if (reader_ == pid) {
      PyErr_SetString(PyExc_RuntimeError,
                      "another thread is waiting for these changes: a watch has one reader at a "
                      "time, so call watch() once for each");
      throw nb::python_error();
    }
    const Reading reading(*this, pid);
    Handle& handle = *nb::inst_ptr<Handle>(arena_);
    Handle::Use use(handle);
    Arena& arena = *handle.arena_;
    const uint64_t deadline = deadline_after(timeout);
    raise_error();
    while (!closed_) {
      // Before the look. A replace that failed moves the version, and nothing else.
      const uint64_t seen = arena.version();
      if (!arena.current(view_) && look(handle, hand)) return;
      raise_error();
      // Asked here too: the version may never rest, and the content stay what it was.
      if (now_ns() >= deadline) return;
      uint64_t now = 0;
      const Status s =
          handle.blocking([&] { return arena.wait_change(seen, deadline, now); });
      if (s == Status::kEmpty) return;
      // kBusy: it has slept for a while. A writer may have died, of which the version does not tell.
      if (s != Status::kOk && s != Status::kBusy) handle.check(s);
      Handle::handle_signals();
    }
  }

  // Whether a look would find nothing new. Costs nothing, and waits for nobody.
  bool current() const {
    const Handle& handle = *nb::inst_ptr<Handle>(arena_);
    return began_ && !error_.is_valid() && !handle.closed() && handle.arena_->current(view_);
  }

  // Whoever is in `next` in another thread returns from it.
  void close() {
    closed_ = true;
    if (reader_ != getpid()) forget();
  }

  uint64_t fell_behind() const { return fell_behind_; }
  uint64_t unread() const { return unread_; }

 private:
  // What was given of the entry that a record has in this state: of one that cannot be decoded
  // (`unread`), what was given of it before, if anything was.
  struct Given {
    uint64_t state = 0;  // 0: nothing
    uint64_t hash = 0;   // of the key
    uint64_t round = 0;  // in which it was looked at last
    nb::object key, object;
    bool unread = false;
  };

  struct Came {
    uint64_t state;
    uint32_t record;
  };

  struct Event {
    uint64_t order;
    nb::object change;
  };

  // One thread at a time. In a forked child the threads of its parent are not there.
  class Reading {
   public:
    Reading(Changes& changes, pid_t pid) : changes_(changes) { changes_.reader_ = pid; }
    ~Reading() {
      changes_.reader_ = 0;
      if (changes_.closed_) changes_.forget();
    }
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;

   private:
    Changes& changes_;
  };

  // Records whose entry was given and is no longer there, by its key: where in the list they are.
  class Gone {
   public:
    Gone(const std::vector<uint32_t>& records, const std::vector<Given>& given)
        : records_(records), given_(given), slots_(std::bit_ceil(2 * records.size() + 1), kNone) {
      for (uint32_t at = 0; at < records.size(); ++at) {
        size_t slot = given[records[at]].hash & (slots_.size() - 1);
        while (slots_[slot] != kNone) slot = (slot + 1) & (slots_.size() - 1);
        slots_[slot] = at;
      }
    }

    static constexpr uint32_t kNone = ~uint32_t{0};

    uint32_t find(uint64_t hash, std::string_view key) const {
      for (size_t slot = hash & (slots_.size() - 1); slots_[slot] != kNone;
           slot = (slot + 1) & (slots_.size() - 1)) {
        const Given& candidate = given_[records_[slots_[slot]]];
        if (candidate.hash == hash && utf8(candidate.key) == key) return slots_[slot];
      }
      return kNone;
    }

   private:
    const std::vector<uint32_t>& records_;
    const std::vector<Given>& given_;
    std::vector<uint32_t> slots_;
  };

  // Whether anything has changed; then it is in `hand`.
  bool look(Handle& handle, nb::list hand) {
    View view = std::exchange(view_, View());
    std::unordered_map<uint32_t, Item> copies;
    // Nobody else touches given_ while we are in here, with the GIL or without.
    auto want = [&](RecordNo record, uint64_t state) {
      return raw(record) >= given_.size() || given_[raw(record)].state != state;
    };
    const uint64_t deadline = deadline_after(handle.lock_timeout_);
    handle.check(handle.blocking(
        [&] { return handle.arena_->refresh(view, want, true, deadline, copies); }));

    if (given_.size() < view.states.size()) given_.resize(view.states.size());
    ++round_;
    std::vector<uint32_t> gone;
    std::vector<Came> came;
    auto compare = [&](uint32_t record) {
      Given& given = given_[record];
      const uint64_t state = view.states[record];
      if (given.state == state || given.round == round_) return;
      given.round = round_;
      if (given.state != 0) gone.push_back(record);
      if (state != 0) came.push_back({state, record});
    };
    if (view.all) {
      for (uint32_t record = 0; record < view.states.size(); ++record) compare(record);
    } else {
      for (uint32_t record : view.touched) compare(record);
    }
    const bool fell_behind = view.all && began_;
    view.touched.clear();
    view.all = false;
    if (!gone.empty() || !came.empty()) {
      give(handle, view, gone, came, copies, hand);
    }
    view_ = std::move(view);
    began_ = true;
    fell_behind_ += fell_behind ? 1 : 0;
    return PyList_GET_SIZE(hand.ptr()) != 0;
  }

  void give(Handle& handle, const View& view, const std::vector<uint32_t>& gone,
            std::vector<Came>& came, const std::unordered_map<uint32_t, Item>& copies,
            nb::list hand) {
    std::sort(came.begin(), came.end(),
              [](const Came& a, const Came& b) { return a.state < b.state; });
    const Gone olds(gone, given_);
    std::vector<Given> fresh(came.size()), dropped(gone.size());
    std::vector<Event> events;
    events.reserve(gone.size() + came.size());
    std::vector<bool> stays(gone.size());
    for (size_t i = 0; i < came.size(); ++i) {
      const auto [state, record] = came[i];
      const auto copied = copies.find(record);
      if (copied == copies.end()) handle.check(Status::kCorrupt);
      const Item& item = copied->second;
      Given& given = fresh[i];
      given.state = state;
      given.hash = handle.arena_->table().key(item.data.get(), item.key_size).hash;
      const uint32_t before = olds.find(given.hash, item.key());
      const bool same = before != Gone::kNone;
      given.key = same ? given_[gone[before]].key : handle.to_str(item.key());
      if (same) stays[before] = true;
      const bool known = same && given_[gone[before]].object.is_valid();
      const nb::object old = known ? given_[gone[before]].object : nb::none();
      try {
        given.object = object_of(handle, record, state, given.key, item, old);
      } catch (nb::python_error& e) {
        // The others do not wait for this one. It stands as it was given, until it changes.
        if (!e.matches(codec_error_)) throw;
        if (!error_.is_valid()) error_ = nb::borrow(e.value());
        given.unread = true;
        if (known) given.object = old;
        continue;
      }
      const nb::str& type = known ? modified_ : added_;
      events.push_back({version_of(state) << 1 | 1, change(type, given.key, given.object, old)});
    }
    const size_t live = events.size();
    for (size_t i = 0; i < gone.size(); ++i) {
      const Given& given = given_[gone[i]];
      if (stays[i] || !given.object.is_valid()) continue;
      events.push_back({time_of_death(handle, view, gone[i]) << 1,
                        change(deleted_, given.key, given.object, nb::none())});
    }
    if (events.size() > live) {
      std::stable_sort(events.begin(), events.end(),
                       [](const Event& a, const Event& b) { return a.order < b.order; });
    }
    nb::object list = nb::steal(PyList_New(static_cast<Py_ssize_t>(events.size())));
    if (!list.is_valid()) throw nb::python_error();
    Py_ssize_t at = static_cast<Py_ssize_t>(events.size());
    for (Event& event : events) PyList_SET_ITEM(list.ptr(), --at, event.change.release().ptr());
    handle.report_reads();
    if (PyList_SetSlice(hand.ptr(), 0, 0, list.ptr()) != 0) throw nb::python_error();
    // Now it is given. The references are dropped at the end, as that may run Python code.
    for (size_t i = 0; i < gone.size(); ++i) {
      std::swap(given_[gone[i]], dropped[i]);
      unread_ -= dropped[i].unread ? 1 : 0;
    }
    for (size_t i = 0; i < came.size(); ++i) {
      std::swap(given_[came[i].record], fresh[i]);
      unread_ += given_[came[i].record].unread ? 1 : 0;
    }
  }

  // The version at which an entry died that was given: the delete is ordered by it. Where its record
  // has been used again, just before that.
  static uint64_t time_of_death(Handle& handle, const View& view, uint32_t record) {
    if (view.states[record] != 0) return version_of(view.states[record]);
    // It may be in use again since the instant of the view.
    const auto& word = handle.arena_->table().record(RecordNo{record}).state;
    return std::min(version_of(word.load(std::memory_order_relaxed)), view.version);
  }

  static nb::object object_of(Handle& handle, uint32_t record, uint64_t state, nb::handle key,
                              const Item& item, const nb::object& old) {
    if (handle.cached(record, state, true)) {
      ++handle.hits_;
      return handle.cache_[record].object;
    }
    ++handle.misses_;
    nb::object data = to_bytes(item.value());
    nb::object object = handle.decode(data, key, old);
    handle.remember(RecordNo{record}, state, nb::borrow(key), object, item.value_size);
    return object;
  }

  // The tuple as its own type makes it, without a call from Python for each.
  nb::object change(nb::handle type, nb::handle key, nb::handle object, nb::handle old) const {
    auto* kind = reinterpret_cast<PyTypeObject*>(change_.ptr());
    PyObject* made = kind->tp_alloc(kind, 4);
    if (made == nullptr) throw nb::python_error();
#if PY_VERSION_HEX >= 0x030e0000
    reinterpret_cast<PyTupleObject*>(made)->ob_hash = -1;
#endif
    Py_ssize_t at = 0;
    for (nb::handle part : {type, key, object, old}) {
      PyTuple_SET_ITEM(made, at++, part.inc_ref().ptr());
    }
    // As the collector does with plain tuples: what holds only text and bytes is in no cycle.
    if (!PyObject_IS_GC(object.ptr()) && !PyObject_IS_GC(old.ptr())) PyObject_GC_UnTrack(made);
    return nb::steal(made);
  }

  // That of what could not be decoded in a look, once; after what else that look has given.
  void raise_error() {
    if (!error_.is_valid()) return;
    const nb::object error = std::exchange(error_, nb::object());
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
    throw nb::python_error();
  }

  void forget() {
    const nb::object error = std::exchange(error_, nb::object());
    View view = std::exchange(view_, View());
    std::vector<Given> given = std::exchange(given_, {});
    unread_ = 0;
  }

  nb::object arena_;
  nb::type_object change_;
  nb::str added_{"ADDED"}, modified_{"MODIFIED"}, deleted_{"DELETED"};
  View view_;
  std::vector<Given> given_;
  nb::object codec_error_ = nb::module_::import_("shmcache._errors").attr("CodecError");
  nb::object error_;
  uint64_t round_ = 0, fell_behind_ = 0, unread_ = 0;
  bool began_ = false, closed_ = false;
  pid_t reader_ = 0;
};

nb::object Handle::changes(nb::type_object change) {
  if (closed()) fail(Status::kClosed, name_, nb::dict());
  if (const Kind kind = arena_->segment().kind(); has_queue(kind)) {
    PyErr_Format(PyExc_TypeError,
                 "a %s keeps no record of its changes, so %R cannot be watched: pop() or claim() "
                 "its items, or watch a Store",
                 kind_name(kind), nb::str(name_.c_str()).ptr());
    throw nb::python_error();
  }
  return nb::cast(new Changes(nb::find(*this), std::move(change)), nb::rv_policy::take_ownership);
}

// Handle::get as a plain method of CPython's: nanobind's dispatch of arguments that may be None or
// left out costs more than the lookup itself.
PyObject* get_method(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  nb::handle key, otherwise = Py_None;
  const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  if (count >= 1) key = args[0];
  if (count >= 2) otherwise = args[1];
  for (Py_ssize_t i = 0; i < named; ++i) {
    nb::handle name = PyTuple_GET_ITEM(names, i);
    if (count < 1 && PyUnicode_CompareWithASCIIString(name.ptr(), "key") == 0) {
      key = args[count + i];
    } else if (count < 2 && PyUnicode_CompareWithASCIIString(name.ptr(), "default") == 0) {
      otherwise = args[count + i];
    } else {
      return PyErr_Format(PyExc_TypeError, "get_by_key() got an unexpected argument '%U'",
                          name.ptr());
    }
  }
  if (!key.is_valid() || count > 2) {
    return PyErr_Format(PyExc_TypeError, "get_by_key() takes a key and perhaps a default");
  }
  try {
    return nb::inst_ptr<Handle>(self)->get(key, nb::borrow(otherwise)).release().ptr();
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {  // as nanobind does
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef get_definition = {
    "get_by_key",
    reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(get_method)),
    METH_FASTCALL | METH_KEYWORDS,
    "The object of ``key``, or ``default``. Shared in this process, and read-only.",
};

nb::dict inspect(int fd) {
  Finding finding;
  uint64_t capacity = 0;
  bool in_use = false;
  const Status status = Segment::inspect(fd, finding, capacity, in_use);
  nb::dict d = describe(finding);
  d["status"] = kStatusNames[static_cast<size_t>(status)];
  d["capacity"] = capacity;
  d["in_use"] = in_use;
  return d;
}

}  // namespace
}  // namespace shmcache

NB_MODULE(_core, m) {
  using shmcache::Handle;
  // Handles live in module globals of users; at exit nothing is freed on purpose.
  nb::set_leak_warnings(false);
  m.doc() = "The native core: arenas in shared memory. Private; see shmcache.Store and FIFO.";
  m.attr("STATUS_NAMES") = nb::cast(std::vector<std::string>(
      std::begin(shmcache::kStatusNames), std::end(shmcache::kStatusNames)));
  m.attr("MAX_KEY_SIZE") = shmcache::kMaxKeySize;
  m.attr("MIN_CAPACITY") = shmcache::kMinCapacity;
  m.attr("ATTACH_BYTE") = shmcache::kAttachByte;
  m.attr("MAX_INDEXES") = shmcache::kMaxIndexes;
  m.attr("MAX_INDEX_NAME_SIZE") = shmcache::kIndexNameSize - 1;
  m.attr("MAX_INDEX_VALUE_SIZE") = shmcache::kMaxIndexValueSize;
  m.attr("LAYOUT_VERSION") = shmcache::kLayoutVersion;
  m.def("inspect", &shmcache::inspect, nb::arg("fd"));
  m.def("nested_deeper",
        [](nb::bytes data, uint64_t most) {
          return shmcache::nested_deeper({data.c_str(), data.size()}, most);
        },
        nb::arg("data"), nb::arg("most"));
  if (PyModule_AddFunctions(m.ptr(), shmcache::sealing::kFunctions) != 0 ||
      PyModule_AddFunctions(m.ptr(), shmcache::wire::kFunctions) != 0) {
    throw nb::python_error();
  }
  m.def("mark_unlinked", &shmcache::Segment::mark_unlinked, nb::arg("fd"));
  nb::class_<shmcache::NewTerms>(m, "NewTerms")
      .def(nb::init<>())
      .def("__setitem__", &shmcache::NewTerms::set, nb::arg("version"), nb::arg("packed"))
      .def("__len__", &shmcache::NewTerms::size);
  nb::class_<shmcache::Token>(m, "Token").def_ro("ended", &shmcache::Token::ended);
  nb::class_<shmcache::Changes>(m, "Changes")
      .def("next", &shmcache::Changes::next, nb::arg("timeout").none(), nb::arg("hand"))
      .def("current", &shmcache::Changes::current)
      .def("close", &shmcache::Changes::close)
      .def_prop_ro("fell_behind", &shmcache::Changes::fell_behind)
      .def_prop_ro("unread", &shmcache::Changes::unread);
  nb::class_<Handle> arena(m, "Arena");
  arena.attr("get") = nb::steal(PyDescr_NewMethod(
      reinterpret_cast<PyTypeObject*>(arena.ptr()), &shmcache::get_definition));
  arena
      .def_static("create", &Handle::create, nb::arg("fd"), nb::arg("shm_name"), nb::arg("kind"),
                  nb::arg("capacity"), nb::arg("codec"), nb::arg("mode"), nb::arg("indexes"),
                  nb::arg("max_attempts"), nb::arg("name"), nb::arg("decode").none(),
                  nb::arg("priority_func").none(), nb::arg("cache_bytes"),
                  nb::arg("lock_timeout"))
      .def_static("attach", &Handle::attach, nb::arg("fd"), nb::arg("shm_name"), nb::arg("kind"),
                  nb::arg("codec"), nb::arg("writable"), nb::arg("trusted_uid").none(),
                  nb::arg("name"), nb::arg("decode").none(), nb::arg("priority_func").none(),
                  nb::arg("cache_bytes"), nb::arg("lock_timeout"))
      .def("close", &Handle::close)
      .def_prop_ro("closed", &Handle::closed)
      .def_prop_ro("writable", &Handle::writable)
      .def_prop_ro("identity", &Handle::identity)
      .def_prop_ro("max_attempts", &Handle::max_attempts)
      .def("add", &Handle::add, nb::arg("key").none(), nb::arg("data"), nb::arg("if_absent") = false,
           nb::arg("terms") = nb::bytes("", 0), nb::arg("indexes") = 0)
      .def("add_many", &Handle::add_many, nb::arg("entries"), nb::arg("indexes") = 0)
      .def("replace", &Handle::replace, nb::arg("entries"), nb::arg("resource_version"),
           nb::arg("indexes") = 0)
      .def("bookmark", &Handle::bookmark, nb::arg("resource_version"))
      .def("index_names", &Handle::index_names)
      .def("select", &Handle::select, nb::arg("index"), nb::arg("values"), nb::arg("keys"))
      .def("index_values", &Handle::index_values, nb::arg("index"))
      .def("reindex", &Handle::reindex, nb::arg("names"), nb::arg("had"), nb::arg("terms"))
      .def("claim_reflector", &Handle::claim_reflector)
      .def_prop_ro("is_reflector", &Handle::is_reflector)
      .def("release_reflector", &Handle::release_reflector)
      .def("set_report", &Handle::set_report, nb::arg("name"), nb::arg("state"), nb::arg("times"),
           nb::arg("counts"), nb::arg("last_error"))
      .def("report", &Handle::report)
      .def("delete", &Handle::remove, nb::arg("key").none())
      .def("get_raw", &Handle::get_raw, nb::arg("key").none())
      .def("contains", &Handle::contains, nb::arg("key").none())
      .def("keys", &Handle::keys)
      .def("values", &Handle::values)
      .def("items", &Handle::items)
      .def("pop", &Handle::pop, nb::arg("max_items"), nb::arg("timeout").none(), nb::arg("hand"))
      .def("poll", &Handle::poll, nb::arg("hand"))
      .def("put_back", &Handle::put_back, nb::arg("hand"))
      .def("settle", &Handle::settle)
      .def("wait_ready", &Handle::wait_ready, nb::arg("timeout").none())
      .def("claim", &Handle::claim, nb::arg("lease").none(), nb::arg("timeout").none(),
           nb::arg("hand"))
      .def("end_claim", &Handle::end_claim, nb::arg("claim"), nb::arg("how"))
      .def("retry_claim", &Handle::retry_claim, nb::arg("claim"), nb::arg("delay"))
      .def("renew", &Handle::renew, nb::arg("claim"), nb::arg("lease").none())
      .def("held", &Handle::held, nb::arg("dead"))
      .def("enqueue", &Handle::enqueue, nb::arg("key").none(), nb::arg("delay"))
      .def("count_failure", &Handle::count_failure, nb::arg("key").none())
      .def("failures", &Handle::failures, nb::arg("key").none())
      .def("forget", &Handle::forget, nb::arg("key").none())
      .def("take_token", &Handle::take_token, nb::arg("rate"), nb::arg("burst"))
      .def("delayed", &Handle::delayed)
      .def("idle", &Handle::idle)
      .def("queue_state", &Handle::queue_state)
      .def("drain", &Handle::drain)
      .def("settle_dead", &Handle::settle_dead, nb::arg("key").none(), nb::arg("drop"))
      .def("waiting", &Handle::waiting)
      .def("shut_down", &Handle::shut_down, nb::arg("immediate"))
      .def("size", &Handle::size)
      .def("version", &Handle::version)
      .def("has_synced", &Handle::has_synced)
      .def("resource_version", &Handle::resource_version)
      .def("wait_change", &Handle::wait_change, nb::arg("version"), nb::arg("timeout").none())
      .def("changes", &Handle::changes, nb::arg("change"))
      .def("stats", &Handle::stats)
      .def("workers", &Handle::workers)
      .def("check", &Handle::check_invariants)
      .def("testing_repair", &Handle::testing_repair);
}
