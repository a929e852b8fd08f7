// Every crash image: each mutating operation is run in a child, one instruction at a time
// (ptrace), and whenever the segment has changed its bytes are kept. Each such image is what
// others find if the process is killed right there. It is attached afresh, read without repair,
// repaired, checked, and its content must be the old or the new. The same again, two deep, for
// images of the repair itself.
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>
#include <map>
#include <set>

#include "check.hpp"

using namespace shmcache;
using harness::drop;
using harness::put;
using harness::soon;

namespace {

// Keys in queue order for a FIFO, in key order for the others. The value of an Indexer's entry
// ends with its index values.
using Content = std::vector<std::pair<std::string, std::string>>;
using Operation = std::function<void(Arena&)>;

constexpr uint64_t kLong = 100'000'000'000'000;  // nanoseconds until a key is due, and a tenth

struct Range {
  uint64_t offset, size;
};

// The parts of the file that an arena uses: all of the fixed ones but the owner slots, and as much
// of the others as an operation may commit.
std::vector<Range> ranges(const Segment& segment, bool grows) {
  const Geometry& g = segment.geometry();
  const uint64_t index = 2 * segment.meta().index_committed.load();
  return {{0, 2 * kPage},
          {g.meta, g.index[0] - g.meta},
          {g.index[0], grows ? index : index / 2},
          {g.index[1], grows ? index : index / 2},
          {g.buckets, segment.meta().buckets_committed.load() * (grows ? 4 : 1)},
          {g.records, segment.meta().records_committed.load() * sizeof(Record) + kPage},
          {g.heap, segment.meta().heap_committed.load() + (grows ? 72 << 10 : 0)}};
}

using Image = std::vector<std::byte>;

Image take(const Segment& segment, const std::vector<Range>& parts) {
  Image image;
  const auto* base = reinterpret_cast<const std::byte*>(&segment.header());
  for (auto [offset, size] : parts) {
    image.insert(image.end(), base + offset, base + offset + size);
  }
  return image;
}

bool same(const Segment& segment, const std::vector<Range>& parts, const Image& image) {
  const auto* base = reinterpret_cast<const std::byte*>(&segment.header());
  const std::byte* at = image.data();
  for (auto [offset, size] : parts) {
    if (std::memcmp(base + offset, at, size) != 0) return false;
    at += size;
  }
  return true;
}

// A file with this image, as a crash leaves it: nobody alive holds anything.
int file_of(const Image& image, const std::vector<Range>& parts, const Geometry& g) {
  int fd = harness::anonymous_file();
  CHECK(ftruncate(fd, static_cast<off_t>(g.file_size)) == 0);
  const std::byte* at = image.data();
  for (auto [offset, size] : parts) {
    CHECK(pwrite(fd, at, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size));
    at += size;
  }
  // What a waiter would find out after 20 ms: the owner is dead.
  uint32_t lock;
  CHECK(pread(fd, &lock, sizeof lock, static_cast<off_t>(g.control)) == sizeof lock);
  lock &= kLockDirty;
  CHECK(pwrite(fd, &lock, sizeof lock, static_cast<off_t>(g.control)) == sizeof lock);
  return fd;
}

// Run `operation` step by step in a child; the distinct images, the first is the one before it.
std::vector<Image> step(Arena& arena, const std::vector<Range>& parts, const Operation& operation,
                        size_t every = 1) {
  const pid_t pid = fork();
  if (pid == 0) {
    ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    raise(SIGSTOP);
    operation(arena);
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
  std::vector<Image> images{take(arena.segment(), parts)};
  Image last = images.front();
  size_t changes = 0;
  for (;;) {
    CHECK(ptrace(PTRACE_SINGLESTEP, pid, nullptr, nullptr) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
    if (WSTOPSIG(status) == SIGSTOP) break;  // the operation is complete
    if (same(arena.segment(), parts, last)) continue;
    last = take(arena.segment(), parts);
    if (++changes % every == 0) images.push_back(last);
  }
  kill(pid, SIGKILL);
  CHECK(waitpid(pid, &status, 0) == pid);
  if (images.back() != last) images.push_back(last);
  return images;
}

bool indexed(const Arena& arena) {
  return const_cast<Arena&>(arena).segment().kind() == Kind::kIndexer;
}

// What an entry has in the indexes, as put() takes it.
std::vector<std::string> terms_of(Arena& arena, const Hit& hit) {
  const Postings postings(arena.segment(), arena.table());
  std::vector<std::string> terms;
  for (uint32_t index = 0; index < kMaxIndexes; ++index) {
    std::set<std::string> values;
    postings.collect(hit, index, values);
    for (const std::string& value : values) terms.push_back(std::to_string(index) + "=" + value);
  }
  return terms;
}

std::string joined(const std::vector<std::string>& terms) {
  std::string text;
  for (const std::string& term : terms) text += " " + term;
  return text;
}

// Whether every index leads from each value to the entries that have it, and knows no other value.
bool indexes_agree(Arena& arena) {
  std::map<std::string, std::vector<std::string>> expected;  // "0=red" -> keys
  View view;
  std::unordered_map<uint32_t, Item> copies;
  CHECK(arena.refresh(view, [](RecordNo, uint64_t) { return true; }, false, soon(), copies) ==
        Status::kOk);
  for (const auto& [record, item] : copies) {
    Hit hit;
    CHECK(arena.table().peek(RecordNo{record}, hit) == Status::kOk);
    for (const std::string& term : terms_of(arena, hit)) {
      expected[term].emplace_back(item.key());
    }
  }
  std::map<std::string, std::vector<std::string>> found;
  for (uint32_t index = 0; index < arena.table().root().indexes; ++index) {
    std::vector<std::string> values;
    CHECK(arena.index_values(index, soon(), values) == Status::kOk);
    for (const std::string& value : values) {
      if (!found.emplace(std::to_string(index) + "=" + value,
                         harness::keys_of(arena, index, value)).second) {
        return false;  // one value, listed twice
      }
    }
  }
  for (auto& [term, keys] : expected) std::sort(keys.begin(), keys.end());
  return found == expected;
}

// What is held and how often it failed, under keys that begin with "~", which no entry has.
Content claims(Arena& arena) {
  const Table& table = arena.table();
  Content found;
  std::map<std::string, uint64_t> failed;
  for (uint64_t i = 0; i < table.records_used(); ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    const State state = state_of(table.record(number).state.load());
    Hit hit;
    if ((state != State::kHeld && state != State::kLive) ||
        table.peek(number, hit) != Status::kOk) {
      continue;
    }
    const Ticket& ticket = *table.ticket(number);
    uint64_t failures = ticket.failures.load() & kFailuresMask;
    std::string key(hit.key_size, '\0'), value(hit.value_size, '\0');
    CHECK(table.read_key(hit, key.data()) && table.read_value(hit, value.data()));
    const bool dead = table.is(number, Table::Sought::kDead);
    if (table.is(number, Table::Sought::kParked)) {
      const uint64_t due = ticket.deadline_ns.load();
      if (due != 0) found.emplace_back("~parked " + key, due < now_ns() + kLong / 2 ? "soon" : "long");
    } else if (state == State::kHeld) {
      RecordNo newer;
      CHECK(table.locate_like(number, Table::Sought::kLive, newer) == Status::kOk);
      if (!dead && newer == kNoRecord && arena.is_cancelled(ticket)) value += " cancelled";
      found.emplace_back((dead ? "~dead " : "~claimed ") + key, value);
      // Counted, and not yet failed: its failure is under way.
      if (!dead && ticket.failures.load() >> 16 == ticket.claim.load()) --failures;
    }
    if (failures != 0) failed[key] = std::max(failed[key], failures);
  }
  for (const auto& [key, failures] : failed) {
    found.emplace_back("~failures of " + key, std::to_string(failures));
  }
  std::sort(found.begin(), found.end());
  return found;
}

Content content(Arena& arena) {
  Content found;
  if (has_queue(arena.segment().kind())) {
    std::vector<Item> items;
    CHECK(arena.queued(true, soon(), items) == Status::kOk);
    for (const Item& item : items) found.emplace_back(item.key(), item.value());
    const Content held = claims(arena);
    found.insert(found.end(), held.begin(), held.end());
    return found;
  }
  View view;
  std::unordered_map<uint32_t, Item> copies;
  CHECK(arena.refresh(view, [](RecordNo, uint64_t) { return true; }, true, soon(), copies) ==
        Status::kOk);
  for (const auto& [record, item] : copies) {
    std::string value(item.value());
    if (Hit hit; indexed(arena) && arena.table().peek(RecordNo{record}, hit) == Status::kOk) {
      value += joined(terms_of(arena, hit));
    }
    found.emplace_back(item.key(), value);
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string value_in(const Content& content, const std::string& key) {
  for (const auto& [k, v] : content) {
    if (k == key) return v;
  }
  return "(absent)";
}

// Which version of which entry is where, as a reader notes it; nothing of a queue.
std::map<uint32_t, uint64_t> noted(Arena& arena) {
  std::map<uint32_t, uint64_t> found;
  if (has_queue(arena.segment().kind())) return found;
  View view;
  std::unordered_map<uint32_t, Item> copies;
  CHECK(arena.refresh(view, [](RecordNo, uint64_t) { return false; }, false, soon(), copies) ==
        Status::kOk);
  CHECK(arena.current(view));
  for (uint32_t i = 0; i < view.states.size(); ++i) {
    if (view.states[i] != 0) found[i] = view.states[i];
  }
  return found;
}

// What is wrong with the image; "" if it is as the contract has it.
// `allowed[0]` is the content before, with resource version `versions[0]`, and `allowed[1]` after.
std::string judge(const Image& image, const std::vector<Range>& parts, const Geometry& geometry,
                  Kind kind, const std::vector<Content>& allowed,
                  const std::vector<std::string>& versions, bool atomic) {
  int fd = file_of(image, parts, geometry);
  std::string wrong;
  std::map<uint32_t, uint64_t> before;
  {
    auto reader = harness::attach(fd, kind, false);
    // Without the lock and before any repair, as a lock-free reader would: each key has one of
    // its allowed values, and all of them are of one allowed content if it is atomic.
    std::set<std::string> keys;
    for (const Content& c : allowed) {
      for (const auto& [key, value] : c) {
        if (key[0] != '~') keys.insert(key);
      }
    }
    Content seen;
    for (const std::string& key : keys) {
      Hit hit;
      std::string value = "(absent)";
      const Status s = reader->find(key, hit);
      if (s == Status::kOk) {
        value.assign(hit.value_size, '\0');
        const bool whole = reader->table().read_value(hit, value.data());
        if (!whole) wrong = "torn: " + key;
        if (whole && indexed(*reader)) value += joined(terms_of(*reader, hit));
      } else if (s != Status::kMiss) {
        wrong = "cannot read " + key;
      }
      bool fits = false;
      for (const Content& c : allowed) fits = fits || value_in(c, key) == value;
      if (!fits) wrong = "before repair, " + key + " is " + value;
      seen.emplace_back(key, value);
    }
    bool one = !atomic;
    for (const Content& c : allowed) {
      bool all = true;
      for (const auto& [key, value] : seen) all = all && value_in(c, key) == value;
      one = one || all;
    }
    if (!one) wrong = "before repair, a mixture of old and new";
    before = noted(*reader);
    const Content listed = content(*reader);
    if (std::find(allowed.begin(), allowed.end(), listed) == allowed.end()) {
      wrong = "before repair, list is neither old nor new";
    }
    for (size_t i = 0; i < 2 && allowed[0] != allowed[1]; ++i) {
      if (listed == allowed[i] && reader->resource_version() != versions[i]) {
        wrong = "before repair, the resource version is of another content";
      }
    }
    if (versions[0] == "" && versions[1] == "rv" && !has_queue(kind) &&
        reader->has_synced() != (listed == allowed[1])) {
      wrong = "before repair, has_synced is of another content";
    }
    if (indexed(*reader) && !indexes_agree(*reader)) {
      wrong = "before repair, the indexes are not those of the entries";
    }
  }
  auto arena = harness::attach(fd, kind);
  bool was_there;
  CHECK(arena->erase("nobody has this key", soon(), was_there) == Status::kOk);  // repairs
  if (auto found = harness::violations(*arena); !found.empty()) wrong = found.front();
  if (noted(*arena) != before) wrong = "a repair changes what a reader has noted";
  const Content after = content(*arena);
  if (std::find(allowed.begin(), allowed.end(), after) == allowed.end()) {
    wrong = "after repair, the content is neither old nor new";
  }
  if (indexed(*arena) && !indexes_agree(*arena)) {
    wrong = "after repair, the indexes are not those of the entries";
  }
  bool wrote = false;
  const std::string no_terms;
  const Entry works = harness::entry("works", "again", no_terms, arena->table().root().indexes);
  if (arena->upsert(works, Upsert::kAlways, soon(), wrote) != Status::kOk) {
    wrong = "after repair, it cannot be written";
  }
  if (has_queue(kind)) {  // all owners are dead: what they had is back, or a dead letter
    std::vector<Arena::Held> held;
    arena->segment().meta().next_reap_ns.store(0);
    CHECK(arena->held(Table::Sought::kInFlight, false, soon(), held) == Status::kOk);
    if (!held.empty()) wrong = "after all have died, something is in flight";
    if (auto found = harness::violations(*arena); !found.empty()) wrong = found.front();
  }
  close(fd);
  return wrong;
}

struct Scenario {
  const char* name;
  Kind kind;
  Operation prepare;
  Operation operation;
  bool atomic = true;  // readers never see a part of it
  bool grows = false;  // commits memory
  size_t every = 1;    // image of so many, where they are many and much the same
  std::vector<Operation> between{};  // leave what may be seen between two parts of the operation
};

std::string claim(Arena& arena) {
  Item item;
  Arena::Claim claim;
  CHECK(arena.try_claim(0, soon(), item, claim) == Status::kOk);
  return std::string(item.key());
}

void claim_of(Arena& arena, const std::string& key) { CHECK(claim(arena) == key); }

// The claim of `key`, which this process takes over: the steps of an operation are those of a child.
Arena::Claim adopt(Arena& arena, const std::string& key) {
  RecordNo record;
  CHECK(arena.segment().claim_slot() == Status::kOk);
  CHECK(arena.table().locate_held(arena.table().key(key.data(), key.size()),
                                  Table::Sought::kInFlight, record) == Status::kOk);
  Ticket& ticket = *arena.table().ticket(record);
  ticket.owner.store(arena.segment().owner_id());
  return {record, arena.table().record(record).state.load(), ticket.claim.load(), 0};
}

Operation end_of(const std::string& key, Arena::End how) {
  return [=](Arena& arena) {
    bool ours = false;
    CHECK(arena.end_claim(adopt(arena, key), how, soon(), ours) == Status::kOk && ours);
  };
}

Operation retry_in(uint64_t delay_ns) {
  return [=](Arena& arena) {
    bool ours = false;
    CHECK(arena.retry_claim(adopt(arena, "a"), delay_ns, soon(), ours) == Status::kOk && ours);
  };
}

// What is behind the claim of "a" has got its place already, and perhaps its failures.
void inherit(Arena& arena, uint64_t failures) {
  const RecordNo claimed = adopt(arena, "a").record;
  RecordNo newer;
  CHECK(arena.table().locate_like(claimed, Table::Sought::kLive, newer) == Status::kOk);
  arena.table().record(newer).seq.store(arena.table().record(claimed).seq.load());
  arena.table().ticket(newer)->failures.store(failures);
}

void one_attempt(Arena& arena) { arena.segment().header().max_attempts = 1; }

void a_claimed(Arena& arena) {
  for (const char* key : {"a", "b", "c", "d"}) put(arena, key, std::string("old ") + key);
  claim_of(arena, "a");
}

void a_claimed_and_newer(Arena& arena) {
  a_claimed(arena);
  put(arena, "a", "newer");
}

void a_dead(Arena& arena) {
  one_attempt(arena);
  a_claimed(arena);
  end_of("a", Arena::End::kFailed)(arena);
}

Operation settle_dead(bool drop) {
  return [=](Arena& arena) {
    bool was_there = false;
    CHECK(arena.settle_dead("a", drop, soon(), was_there) == Status::kOk && was_there);
  };
}

void enqueue(Arena& arena, const std::string& key, uint64_t delay_ns = 0,
             uint32_t priority = 0) {
  bool open = false;
  CHECK(arena.enqueue(key, priority, delay_ns, soon(), open) == Status::kOk && open);
}

void count_failure(Arena& arena, const std::string& key) {
  uint64_t before = 0;
  CHECK(arena.count_failure(key, soon(), before) == Status::kOk);
}

// "a" and "b" are dirty, "c" waits for its time, "d" has failed twice.
void keys(Arena& arena) {
  for (const char* key : {"a", "b", "gone"}) enqueue(arena, key);
  enqueue(arena, "c", kLong);
  count_failure(arena, "d");
  count_failure(arena, "d");
  drop(arena, "gone");
}

// "a" is being processed and has failed once; with `delay_ns` it is to come again.
Operation a_processed(uint64_t delay_ns) {
  return [=](Arena& arena) {
    keys(arena);
    claim_of(arena, "a");
    count_failure(arena, "a");
    if (delay_ns != 0) enqueue(arena, "a", delay_ns);
  };
}

// `key` is due, and nobody has looked.
void due(Arena& arena, const std::string& key) {
  enqueue(arena, key, 1);
  const uint64_t until = now_ns() + 3'000'000;  // more than a tick
  while (now_ns() < until) sched_yield();
}

void urgent(Arena& arena, const std::string& key) {
  Entry entry{key, {"urgent", 6}};
  entry.priority = 7;
  bool wrote = false;
  CHECK(arena.upsert(entry, Upsert::kAlways, soon(), wrote) == Status::kOk && wrote);
}

void look(Arena& arena) { CHECK(arena.look(soon()) == Status::kOk); }

void forget(Arena& arena, const std::string& key) {
  CHECK(arena.forget(key, soon()) == Status::kOk);
}

void replace(Arena& arena, const Content& with) {
  std::vector<Entry> entries;
  for (const auto& [key, value] : with) entries.push_back({key, {value.data(), value.size()}});
  CHECK(arena.replace(entries, "rv", soon()) == Status::kOk);
}

void four(Arena& arena) {
  for (const char* key : {"a", "b", "c", "d"}) put(arena, key, std::string("old ") + key);
  put(arena, "gone", "x");
  drop(arena, "gone");  // free lists and tombstones are not empty
}

void four_indexed(Arena& arena) {
  put(arena, "a", "old a", "0=red 1=big");
  put(arena, "b", "old b", "0=red 1=small");
  put(arena, "c", "old c", "0=blue");
  put(arena, "d", "old d", "");
  put(arena, "gone", "x", "0=red 1=gone");
  drop(arena, "gone");
}

void replace_indexed(Arena& arena) {
  const std::string red = harness::packed("0=red 1=big"), green = harness::packed("0=green");
  const std::string a = "old a", b = "changed", c = "old c";
  const std::vector<Entry> entries = {harness::entry("a", a, red), harness::entry("b", b, green),
                                      harness::entry("c", c, green),
                                      harness::entry("new", b, red)};
  CHECK(arena.replace(entries, "rv", soon()) == Status::kOk);
}

// One index more: each entry is found in it under its first letter.
void reindex(Arena& arena) {
  const uint32_t had = arena.table().root().indexes;
  std::unordered_map<uint64_t, std::string> terms;
  for (;;) {
    std::vector<Arena::Missing> missing;
    const Status s = arena.reindex({"letter"}, had, terms, soon(), missing);
    if (s == Status::kOk) return;
    CHECK(s == Status::kMiss && !missing.empty());
    for (const auto& [version, item] : missing) {
      terms[version] =
          harness::packed(std::to_string(had) + "=" + std::string(item.key().substr(0, 1)));
    }
  }
}

// So many values that one more passes the buckets of a new arena.
void many_values(Arena& arena) {
  for (int i = 0; i < 512; ++i) {
    put(arena, "k" + std::to_string(i), "", "0=" + std::to_string(i));
  }
}

// A value that does not fit into the page of heap that a new arena has: the heap grows.
const std::string kLarge(5000, 'L');

const std::vector<Scenario>& scenarios() {
  static const std::vector<Scenario> all = {
      {"add", Kind::kStore, four, [](Arena& a) { put(a, "new", "value"); }},
      {"update", Kind::kStore, four, [](Arena& a) { put(a, "b", "a longer value than before"); }},
      {"delete", Kind::kStore, four, [](Arena& a) { drop(a, "b"); }},
      {"add with growth", Kind::kStore, four, [](Arena& a) { put(a, "new", kLarge); }, true,
       true},
      {"add with a new index", Kind::kStore,
       [](Arena& a) {
         // So many that the next one passes the load limit of 1,024 words. Nothing was deleted:
         // whether that leaves a tombstone, which counts too, is up to the seed.
         for (int i = 0; i < 768; ++i) put(a, "k" + std::to_string(i), "");
       },
       [](Arena& a) { put(a, "new", "value"); }, true, true},
      {"add_many", Kind::kStore, four,
       [](Arena& a) {
         const std::vector<Entry> entries = {{"b", {"1", 1}}, {"new", {"2", 1}}};
         CHECK(a.upsert_many(entries, soon()) == Status::kOk);
       },
       false},
      {"replace", Kind::kStore, four,
       [](Arena& a) {
         replace(a, {{"a", "old a"}, {"b", "changed"}, {"new", "1"}, {"new", "2"}});
       }},
      {"add to a queue", Kind::kFifo, four, [](Arena& a) { put(a, "new", "value"); }},
      {"update in a queue", Kind::kFifo, four, [](Arena& a) { put(a, "b", "new value"); }},
      {"delete in a queue", Kind::kFifo, four, [](Arena& a) { drop(a, "b"); }},
      {"pop", Kind::kFifo, four,
       [](Arena& a) {
         std::vector<Item> items;
         CHECK(a.try_pop(1, soon(), items) == Status::kOk);
       }},
      {"pop_many", Kind::kFifo, four,
       [](Arena& a) {
         std::vector<Item> items;
         CHECK(a.try_pop(2, soon(), items) == Status::kOk);
       },
       false},
      {"put back", Kind::kFifo,
       [](Arena& a) {
         put(a, "old", "it was the first");
         four(a);
         std::vector<Item> items;
         CHECK(a.try_pop(1, soon(), items) == Status::kOk);
       },
       [](Arena& a) {
         bool wrote = false;
         CHECK(a.put_back({"old", {"it was the first", 16}}, Position{1, 0}.pack(), soon(), wrote) ==
               Status::kOk);
         CHECK(wrote);
       }},
      {"shut down at once", Kind::kFifo, four,
       [](Arena& a) { CHECK(a.shut_down(Arena::ShutDown::kEnd, true, soon()) == Status::kOk); }, false},
      {"replace of a queue", Kind::kFifo, four,
       [](Arena& a) {
         replace(a, {{"z", "1"}, {"b", "changed"}, {"z", "2"}, {"a", "old a"}});
       }},
      {"claim", Kind::kFifo, four, [](Arena& a) { claim_of(a, "a"); }},
      {"done", Kind::kFifo, a_claimed, end_of("a", Arena::End::kDone)},
      {"failed", Kind::kFifo, a_claimed, end_of("a", Arena::End::kFailed)},
      {"released", Kind::kFifo, a_claimed, end_of("a", Arena::End::kReleased)},
      {"done, a newer one waits", Kind::kFifo, a_claimed_and_newer,
       end_of("a", Arena::End::kDone)},
      {"failed, a newer one waits", Kind::kFifo, a_claimed_and_newer,
       end_of("a", Arena::End::kFailed), true, false, 1,
       {[](Arena& a) { inherit(a, 0); }, [](Arena& a) { inherit(a, 1); }}},
      {"failed for good", Kind::kFifo,
       [](Arena& a) {
         one_attempt(a);
         a_claimed(a);
       },
       end_of("a", Arena::End::kFailed)},
      {"failed for good again", Kind::kFifo,
       [](Arena& a) {
         a_dead(a);
         for (const char* key : {"b", "c", "d"}) drop(a, key);
         put(a, "a", "newer");
         claim_of(a, "a");
       },
       end_of("a", Arena::End::kFailed), true, false, 1, {settle_dead(true)}},
      {"a dead letter is retried", Kind::kFifo, a_dead, settle_dead(false), true, false, 1,
       {[](Arena& a) {  // its failures are forgotten already
         RecordNo record;
         CHECK(a.table().locate_held(a.table().key("a", 1), Table::Sought::kDead, record) ==
               Status::kOk);
         a.table().ticket(record)->failures.store(0);
       }}},
      {"a dead letter is dropped", Kind::kFifo, a_dead, settle_dead(true)},
      {"add of what is claimed", Kind::kFifo, a_claimed, [](Arena& a) { put(a, "a", "newer"); }},
      {"update behind a claim", Kind::kFifo, a_claimed_and_newer,
       [](Arena& a) { put(a, "a", "newest"); }},
      {"delete of what is claimed", Kind::kFifo, a_claimed, [](Arena& a) { drop(a, "a"); }},
      {"delete behind a claim", Kind::kFifo, a_claimed_and_newer,
       [](Arena& a) { drop(a, "a"); }},
      {"replace beside claims", Kind::kFifo,
       [](Arena& a) {
         a_claimed(a);
         claim_of(a, "b");
       },
       [](Arena& a) { replace(a, {{"z", "1"}, {"b", "changed"}, {"c", "old c"}}); }},
      {"claim of a dead one's item", Kind::kFifo,
       [](Arena& a) {
         a_claimed(a);
         adopt(a, "a");
         RecordNo record;
         CHECK(a.table().locate_held(a.table().key("a", 1), Table::Sought::kInFlight, record) ==
               Status::kOk);
         a.table().ticket(record)->owner.store(0);
         a.segment().meta().next_reap_ns.store(0);
       },
       [](Arena& a) { claim_of(a, "a"); }, true, false, 1,
       {end_of("a", Arena::End::kFailed)}},
      {"add of an urgent item", Kind::kFifo, four, [](Arena& a) { urgent(a, "new"); }},
      {"an item becomes urgent", Kind::kFifo, four, [](Arena& a) { urgent(a, "c"); }},
      {"an item is urgent no more", Kind::kFifo,
       [](Arena& a) {
         four(a);
         urgent(a, "c");
       },
       [](Arena& a) { put(a, "c", "usual"); }},
      {"a dirty key becomes urgent", Kind::kWorkQueue, keys,
       [](Arena& a) { enqueue(a, "b", 0, 7); }},
      {"a dirty key", Kind::kWorkQueue, keys, [](Arena& a) { enqueue(a, "new"); }},
      {"a dirty key that has failed", Kind::kWorkQueue, keys, [](Arena& a) { enqueue(a, "d"); }},
      {"a dirty key that is parked", Kind::kWorkQueue, keys, [](Arena& a) { enqueue(a, "c"); }},
      {"a delay", Kind::kWorkQueue, keys, [](Arena& a) { enqueue(a, "new", kLong / 10); }},
      {"a shorter delay", Kind::kWorkQueue, keys, [](Arena& a) { enqueue(a, "c", kLong / 10); }},
      {"a delay of what has failed", Kind::kWorkQueue, keys,
       [](Arena& a) { enqueue(a, "d", kLong); }},
      {"a failure", Kind::kWorkQueue, keys, [](Arena& a) { count_failure(a, "new"); }},
      {"one failure more", Kind::kWorkQueue, keys, [](Arena& a) { count_failure(a, "d"); }},
      {"forget", Kind::kWorkQueue, keys, [](Arena& a) { forget(a, "d"); }},
      {"forget what is all there is", Kind::kWorkQueue,
       [](Arena& a) {
         a_processed(kLong)(a);
         count_failure(a, "a");
         enqueue(a, "a");
       },
       [](Arena& a) { forget(a, "a"); }},
      {"done, and has failed", Kind::kWorkQueue, a_processed(0), end_of("a", Arena::End::kDone)},
      {"done, to come again", Kind::kWorkQueue, a_processed(kLong),
       end_of("a", Arena::End::kDone)},
      {"done, and dirty", Kind::kWorkQueue,
       [](Arena& a) {
         a_processed(0)(a);
         enqueue(a, "a");
       },
       end_of("a", Arena::End::kDone)},
      {"failed, to come again", Kind::kWorkQueue,
       [](Arena& a) {
         a_processed(kLong)(a);
         count_failure(a, "a");  // into what is parked
       },
       end_of("a", Arena::End::kFailed)},
      {"failed, to come again later", Kind::kWorkQueue, a_processed(0), retry_in(kLong)},
      {"failed, dirty, to come again later", Kind::kWorkQueue,
       [](Arena& a) {
         a_processed(0)(a);
         enqueue(a, "a");
       },
       retry_in(kLong)},
      {"failed, to come again sooner", Kind::kWorkQueue, a_processed(kLong), retry_in(kLong / 10),
       true, false, 1,
       {[](Arena& a) { count_failure(a, "a"); },
        [](Arena& a) {
          count_failure(a, "a");
          enqueue(a, "a", kLong / 10);
        }}},
      {"failed, to come again now", Kind::kWorkQueue, a_processed(kLong), retry_in(0)},
      {"due", Kind::kWorkQueue,
       [](Arena& a) {
         keys(a);
         due(a, "c");
       },
       look},
      {"due, and dirty already", Kind::kWorkQueue,
       [](Arena& a) {
         keys(a);
         count_failure(a, "c");
         due(a, "c");
         enqueue(a, "c");
       },
       look},
      {"due while it is processed", Kind::kWorkQueue,
       [](Arena& a) {
         a_processed(0)(a);
         due(a, "a");
       },
       look},
      {"add to an indexer", Kind::kIndexer, four_indexed,
       [](Arena& a) { put(a, "new", "value", "0=blue 1=new"); }},
      {"update in an indexer", Kind::kIndexer, four_indexed,
       [](Arena& a) { put(a, "a", "new a", "0=blue 1=big 1=bold"); }},
      {"delete in an indexer", Kind::kIndexer, four_indexed, [](Arena& a) { drop(a, "b"); }},
      {"replace of an indexer", Kind::kIndexer, four_indexed, replace_indexed},
      {"one index more", Kind::kIndexer, four_indexed, reindex, true, true},
      {"more buckets", Kind::kIndexer, many_values,
       [](Arena& a) { put(a, "new", "value", "0=red"); }, true, true, 16},
      {"bookmark", Kind::kStore, four,
       [](Arena& a) { CHECK(a.bookmark("the next version", soon()) == Status::kOk); }},
  };
  return all;
}

std::unique_ptr<Arena> created(int fd, Kind kind) {
  using Names = std::vector<std::string>;
  return harness::create(fd, kind, 1 << 20,
                         kind == Kind::kIndexer ? Names{"colour", "size"} : Names{});
}

// The content before, after, and after each part of an operation that is not atomic.
std::vector<Content> outcomes(const Scenario& scenario, Arena& before, Arena& after) {
  std::vector<Content> allowed{content(before), content(after)};
  for (const Operation& part : scenario.between) {
    int fd = harness::anonymous_file();
    auto arena = created(fd, scenario.kind);
    scenario.prepare(*arena);
    part(*arena);
    allowed.push_back(content(*arena));
    close(fd);
  }
  if (scenario.atomic) return allowed;
  Content part = allowed[0];
  if (scenario.kind == Kind::kFifo) {  // taken one by one from the head
    while (part.size() > allowed[1].size() + 1) {
      part.erase(part.begin());
      allowed.push_back(part);
    }
  } else {  // add_many, after its first entry
    for (auto& [key, value] : part) {
      if (key == "b") value = "1";
    }
    allowed.push_back(part);
  }
  return allowed;
}

struct Run {
  int fd, fd_after;
  std::unique_ptr<Arena> arena, after;
  std::vector<Content> allowed;
  std::vector<std::string> versions;
  std::vector<Range> parts;
  std::vector<Image> images;

  Run(const Scenario& scenario, const Operation& operation) {
    fd = harness::anonymous_file();
    arena = created(fd, scenario.kind);
    scenario.prepare(*arena);
    fd_after = harness::anonymous_file();
    after = created(fd_after, scenario.kind);
    scenario.prepare(*after);
    scenario.operation(*after);
    allowed = outcomes(scenario, *arena, *after);
    versions = {arena->resource_version(), after->resource_version()};
    parts = ranges(arena->segment(), scenario.grows);
    images = step(*arena, parts, operation, scenario.every);
  }
  ~Run() {
    close(fd);
    close(fd_after);
  }
};

}  // namespace

CASE(every_crash_image, "killed at any store of any operation, the arena is old or new, and whole") {
  size_t all = 0;
  for (const Scenario& scenario : scenarios()) {
    Run run(scenario, scenario.operation);
    const Geometry geometry = run.arena->segment().geometry();
    for (size_t i = 0; i < run.images.size(); ++i) {
      const std::string wrong =
          judge(run.images[i], run.parts, geometry, scenario.kind, run.allowed, run.versions,
                scenario.atomic);
      if (!wrong.empty()) {
        harness::fail(__FILE__, __LINE__, std::string(scenario.name) + ", image " +
                                              std::to_string(i) + ": " + wrong);
      }
    }
    std::printf("%-24s %4zu images\n", scenario.name, run.images.size());
    all += run.images.size();
  }
  std::printf("%-24s %4zu images\n", "all", all);
}

namespace {

// Images of each scenario (about `samples` of them), each with images (one of `every`) of the
// repair that it needs.
void judge_repairs(size_t samples, size_t every) {
  size_t all_first = 0, all_second = 0;
  for (const Scenario& scenario : scenarios()) {
    const std::string_view name = scenario.name;
    if (name == "add with a new index" || name == "more buckets") continue;  // long to step
    Run run(scenario, scenario.operation);
    const Geometry geometry = run.arena->segment().geometry();
    size_t first = 0, second = 0;
    for (size_t i = 1; i < run.images.size(); i += run.images.size() / samples + 1) {
      int fd = file_of(run.images[i], run.parts, geometry);
      auto arena = harness::attach(fd, scenario.kind);
      const auto images =
          step(*arena, run.parts, [](Arena& a) { drop(a, "nobody has this key"); }, every);
      ++first;
      for (const Image& image : images) {
        const std::string wrong =
            judge(image, run.parts, geometry, scenario.kind, run.allowed, run.versions,
                  scenario.atomic);
        if (!wrong.empty()) {
          harness::fail(__FILE__, __LINE__, std::string(scenario.name) + ", repair of image " +
                                                std::to_string(i) + ": " + wrong);
        }
        ++second;
      }
      close(fd);
    }
    std::printf("%-24s %4zu images, %5zu of their repair\n", scenario.name, first, second);
    std::fflush(stdout);
    all_first += first;
    all_second += second;
  }
  std::printf("%-24s %4zu images, %5zu of their repair\n", "all", all_first, all_second);
}

}  // namespace

CASE(every_crash_image_of_repair, "a repair killed at any store is repeated, with the same result") {
  judge_repairs(4, 3);
}

CASE(every_pair_of_crashes, "the same for every image of every operation; takes some ten minutes") {
  judge_repairs(1000, 1);
}

CASE(crash_images_show_planted_faults, "an operation in the wrong order is found out by its images") {
  const Scenario& update = scenarios()[1];
  // Delete, then add: between the two the key is neither old nor new.
  Run run(update, [](Arena& a) {
    drop(a, "b");
    put(a, "b", "a longer value than before");
  });
  const Geometry geometry = run.arena->segment().geometry();
  bool found = false;
  for (const Image& image : run.images) {
    found = found || !judge(image, run.parts, geometry, update.kind, run.allowed, run.versions,
                            true)
                          .empty();
  }
  CHECK(found);
}
