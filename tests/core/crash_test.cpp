// Death: what a crash leaves is planted word by word, or made by killing real processes.
#include <csignal>
#include <cstring>
#include <sys/wait.h>
#include <thread>

#include "check.hpp"
#include "guard.hpp"

using namespace shmcache;
using harness::put;
using harness::soon;
using harness::value_of;

namespace {

Record& record_of_key(Arena& arena, const std::string& key) {
  Hit hit;
  CHECK(arena.find(key, hit) == Status::kOk);
  return arena.table().record(hit.record);
}

void mark_dirty(Arena& arena) { arena.segment().control().lock.store(kLockDirty); }

void take_lock(Arena& arena, Hold hold) {
  Acquired found;
  CHECK(arena.segment().claim_slot() == Status::kOk);
  CHECK(try_lock(arena.segment(), hold, found));
}

// Run `work` in a child that then stays alive until killed; returns its pid once it has run.
template <typename Work>
pid_t in_child(Work work) {
  int ready[2];
  CHECK(pipe(ready) == 0);
  const pid_t pid = fork();
  if (pid == 0) {
    work();
    char byte = 1;
    if (write(ready[1], &byte, 1) != 1) _exit(1);
    for (;;) pause();
  }
  char byte = 0;
  CHECK(read(ready[0], &byte, 1) == 1);
  close(ready[0]);
  close(ready[1]);
  return pid;
}

}  // namespace

CASE(owner_killed, "the lock of a killed owner passes on, and the arena is repaired") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  put(*arena, "a", "1");
  const pid_t pid = in_child([&] { take_lock(*arena, Hold::kWrite); });
  bool wrote = false;
  // Alive and holding: nobody robs it.
  CHECK(arena->upsert({"b", {"2", 1}}, Upsert::kAlways, now_ns() + 100'000'000, wrote) ==
        Status::kLockTimeout);
  kill(pid, SIGSTOP);
  CHECK(arena->upsert({"b", {"2", 1}}, Upsert::kAlways, now_ns() + 100'000'000, wrote) ==
        Status::kLockTimeout);
  // Readers go on.
  Hit hit;
  CHECK(arena->find("a", hit) == Status::kOk);
  kill(pid, SIGKILL);  // not reaped yet: a zombie must count as dead
  CHECK(arena->upsert({"b", {"2", 1}}, Upsert::kAlways, soon(), wrote) == Status::kOk);
  CHECK(arena->segment().meta().repairs.load() == 1);
  CHECK(waitpid(pid, nullptr, 0) == pid);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(reader_owner_killed, "a killed owner that only looked leaves nothing to repair") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  put(*arena, "a", "1");
  const pid_t pid = in_child([&] { take_lock(*arena, Hold::kRead); });
  kill(pid, SIGKILL);
  CHECK(waitpid(pid, nullptr, 0) == pid);
  put(*arena, "b", "2");
  CHECK(arena->segment().meta().repairs.load() == 0);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(forked_child_is_somebody_else, "a child's death and a child's lock are not its parent's") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  put(*arena, "parent", "1");  // the parent owns a slot now
  const uint32_t parent_id = arena->segment().owner_id();
  const pid_t pid = fork();
  if (pid == 0) {
    if (arena->segment().owner_id() != 0) _exit(1);
    put(*arena, "child", "2");
    _exit(arena->segment().owner_id() == parent_id ? 2 : 0);
  }
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  CHECK(arena->segment().owner_id() == parent_id);
  CHECK(value_of(*arena, "child") == "2");
  // The parent dies while a child that inherited its handle lives: the death is seen.
  int pids[2];
  CHECK(pipe(pids) == 0);
  const pid_t parent = in_child([&] {
    take_lock(*arena, Hold::kWrite);
    const pid_t child = fork();
    if (child == 0) {
      for (;;) pause();
    }
    CHECK(write(pids[1], &child, sizeof child) == sizeof child);
  });
  pid_t grandchild = 0;
  CHECK(read(pids[0], &grandchild, sizeof grandchild) == sizeof grandchild);
  kill(parent, SIGKILL);
  CHECK(waitpid(parent, nullptr, 0) == parent);
  put(*arena, "after", "3");
  CHECK(arena->segment().meta().repairs.load() == 1);
  kill(grandchild, SIGKILL);
  CHECK_WHOLE(*arena);
  close(pids[0]);
  close(pids[1]);
  close(fd);
}

CASE(repair_settles_by_the_rule, "what each step of an operation leaves becomes old or new") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  for (const char* key : {"a", "b", "c", "d"}) put(*arena, key, "old");
  const uint64_t generation = arena->table().root().generation;

  // add: published, not indexed -> there.
  RecordNo fresh;
  const Key added = arena->table().key("added", 5);
  CHECK(arena->table().prepare(added, {"new", 3}, 0, fresh) == Status::kOk);
  Record& f = arena->table().record(fresh);
  f.state.store(make_state(arena->version() + 5, State::kLive));
  // add: prepared, not published -> not there.
  RecordNo unborn;
  CHECK(arena->table().prepare(arena->table().key("unborn", 6), {"x", 1}, 0, unborn) == Status::kOk);
  // update: the new one live, the old one not yet dead -> new.
  RecordNo update;
  CHECK(arena->table().prepare(arena->table().key("a", 1), {"new", 3}, 0, update) == Status::kOk);
  arena->table().record(update).state.store(make_state(arena->version() + 6, State::kLive));
  // delete: dead, still indexed -> gone.
  Record& deleted = record_of_key(*arena, "b");
  deleted.state.store(make_state(version_of(deleted.state.load()), State::kFree));
  // replace, before the root moved: staged and doomed are as if it had never begun.
  RecordNo staged;
  CHECK(arena->table().prepare(arena->table().key("staged", 6), {"x", 1}, 0, staged) == Status::kOk);
  arena->table().record(staged).txn.store(generation + 1);
  arena->table().record(staged).state.store(make_state(arena->version() + 7, State::kStaged));
  record_of_key(*arena, "c").txn.store(generation + 1);
  // replace, after the root moved.
  RecordNo committed;
  CHECK(arena->table().prepare(arena->table().key("committed", 9), {"new", 3}, 0, committed) ==
        Status::kOk);
  arena->table().record(committed).txn.store(generation);
  arena->table().record(committed).state.store(make_state(arena->version() + 8, State::kStaged));
  record_of_key(*arena, "d").txn.store(generation);

  const uint64_t version = arena->version();
  mark_dirty(*arena);
  // A reader that cannot repair sees the same truth by list.
  auto reader = harness::attach(fd, Kind::kStore, false);
  View view;
  std::unordered_map<uint32_t, Item> copies;
  arena->segment().meta().mutation_seq.fetch_add(1);  // as in the middle of a mutation
  CHECK(reader->refresh(view, [](RecordNo, uint64_t) { return true; }, true, soon(), copies) ==
        Status::kOk);
  CHECK(view.live == 4 && copies.size() == 4);

  put(*arena, "trigger", "x");
  CHECK_WHOLE(*arena);
  CHECK(value_of(*arena, "added") == "new" && value_of(*arena, "unborn") == "(absent)");
  CHECK(value_of(*arena, "a") == "new" && value_of(*arena, "b") == "(absent)");
  CHECK(value_of(*arena, "staged") == "(absent)" && value_of(*arena, "c") == "old");
  CHECK(value_of(*arena, "committed") == "new" && value_of(*arena, "d") == "(absent)");
  CHECK(arena->version() > version + 8);  // no version is given twice
  CHECK(arena->segment().meta().repairs.load() == 1);
  close(fd);
}

CASE(random_kills, "writers killed at random instants leave whole arenas and readable content") {
  harness::Random random{2026};
  for (Kind kind : {Kind::kStore, Kind::kFifo}) {
    int fd = harness::anonymous_file();
    auto arena = harness::create(fd, kind, 16 << 20);
    if (kind == Kind::kStore) put(*arena, "stable", "here");
    for (int round = 0; round < 60; ++round) {
      const pid_t writer = fork();
      if (writer == 0) {
        harness::Random r{static_cast<uint64_t>(round) * 7919 + 13};
        std::string value(3000, 'v');
        for (;;) {
          const std::string key = "k" + std::to_string(r(300));
          bool flag = false;
          std::vector<Item> items;
          switch (r(6)) {
            case 0: (void)arena->erase(key, soon(), flag); break;
            case 1:
              if (kind == Kind::kFifo) (void)arena->try_pop(3, soon(), items);
              break;
            case 2:
              if (r(20) == 0) {
                std::vector<std::string> keys;
                for (int i = 0; i < 100; ++i) keys.push_back("k" + std::to_string(r(300)));
                std::vector<Entry> entries;
                if (kind == Kind::kStore) entries.push_back({"stable", {"here", 4}});
                for (auto& k : keys) entries.push_back({k, {value.data(), r(2000)}});
                (void)arena->replace(entries, "rv", soon());
              }
              break;
            default: {
              const uint64_t size = r(3000);
              (void)arena->upsert({key, {value.data(), size}}, Upsert::kAlways, soon(), flag);
            }
          }
        }
      }
      usleep(static_cast<useconds_t>(200 + random(8000)));
      kill(writer, SIGKILL);
      CHECK(waitpid(writer, nullptr, 0) == writer);
      if (kind == Kind::kStore) {
        Hit hit;
        CHECK(arena->find("stable", hit) == Status::kOk);  // before any repair
      }
      put(*arena, "after", "x");
      CHECK_WHOLE(*arena);
      if (kind == Kind::kStore) CHECK(value_of(*arena, "stable") == "here");
    }
    close(fd);
  }
}

CASE(checker_finds_planted_faults, "each invariant, broken on purpose, is reported by its number") {
  struct Fault {
    const char* invariant;
    Kind kind;
    std::function<void(Arena&)> plant;
  };
  auto first_block = [](Arena& a) { return raw(record_of_key(a, "a").extent.load()) - 8; };
  auto claim_first = [](Arena& a) {
    Item item;
    Arena::Claim claim;
    CHECK(a.try_claim(0, soon(), item, claim) == Status::kOk && item.key() == "a");
  };
  auto park = [](Arena& a, const std::string& key) {
    bool open = false;
    RecordNo record;
    CHECK(a.enqueue(key, 0, 1'000'000'000'000, soon(), open) == Status::kOk);
    CHECK(a.table().locate_held(a.table().key(key.data(), key.size()), Table::Sought::kParked,
                                record) == Status::kOk);
    return record;
  };
  const std::vector<Fault> faults = {
      {"I1", Kind::kStore,
       [](Arena& a) {
         auto* words = a.segment().index(a.table().root().area);
         for (int i = 0; i < 1024; ++i) {
           if (words[i] != 0) {
             words[i] = 0;
             break;
           }
         }
       }},
      {"I2", Kind::kStore,
       [](Arena& a) {
         auto* words = a.segment().index(a.table().root().area);
         const uint64_t hash = a.table().key("a", 1).hash;
         uint64_t slot = hash & 1023;
         while (!tag_matches(words[slot], hash)) ++slot;
         words[slot] = index_word(hash, RecordNo{1});
       }},
      {"I3", Kind::kStore, [](Arena& a) { record_of_key(a, "a").txn = 9; }},
      {"I4", Kind::kStore,
       [&](Arena& a) { store_word(a.segment().heap() + first_block(a) / 8, 48); }},
      {"I5", Kind::kStore, [](Arena& a) { a.segment().meta().free_lists.first_bitmap = 0; }},
      {"I6", Kind::kStore, [](Arena& a) { a.segment().meta().free_record = kNoRecord; }},
      {"I7", Kind::kFifo, [](Arena& a) { record_of_key(a, "b").seq = 77; }},
      {"I7", Kind::kFifo, [](Arena& a) { record_of_key(a, "b").prev = kNoRecord; }},
      {"I7", Kind::kFifo, [](Arena& a) { a.segment().meta().waiting_count = 9; }},
      {"I7", Kind::kFifo, [](Arena& a) { a.segment().meta().waiting_bitmap = 3; }},
      {"I7", Kind::kFifo,
       [](Arena& a) { record_of_key(a, "c").seq = Position{now_ns(), 1}.pack(); }},
      {"I7", Kind::kFifo,
       [&](Arena& a) {
         claim_first(a);
         a.segment().meta().claims = 0;
         // Queued, though somebody works on its key.
         Meta& m = a.segment().meta();
         const RecordNo tail = m.waiting[0].tail;
         put(a, "a", "newer");
         Table::Place place;
         CHECK(a.table().locate(a.table().key("a", 1), place) == Status::kOk);
         a.table().record(tail).next = place.record;
         a.table().record(place.record).prev = tail;
         a.table().record(place.record).next = kNoRecord;
         m.waiting[0].tail = place.record;
         m.waiting[0].count = 3;
         m.waiting_count = 3;
       }},
      {"I8", Kind::kStore, [](Arena& a) { a.segment().meta().live = 9; }},
      {"I8", Kind::kFifo, [](Arena& a) { a.segment().meta().held = 1; }},
      {"I8", Kind::kStore, [](Arena& a) { a.segment().meta().used_bytes = 9; }},
      {"I9", Kind::kStore, [](Arena& a) { a.segment().meta().mutation_seq.fetch_add(1); }},
      {"I12", Kind::kFifo,
       [&](Arena& a) {
         claim_first(a);
         a.segment().meta().in_flight.count = 0;
       }},
      {"I12", Kind::kFifo,
       [&](Arena& a) {
         claim_first(a);
         a.table().record(a.segment().meta().in_flight.head).txn = kDeadLetter;
       }},
      {"I12", Kind::kFifo,
       [&](Arena& a) {
         claim_first(a);
         a.segment().meta().in_flight.head = kNoRecord;
       }},
      {"I12", Kind::kStore,
       [](Arena& a) {
         Record& r = record_of_key(a, "a");
         r.state = r.state | static_cast<uint64_t>(State::kHeld);
       }},
      {"I13", Kind::kWorkQueue,
       [&](Arena& a) { a.table().ticket(park(a, "x"))->deadline_ns = 1; }},
      {"I13", Kind::kWorkQueue,
       [&](Arena& a) {
         park(a, "x");
         a.segment().meta().timers_bitmap = 0;
       }},
      {"I13", Kind::kWorkQueue,
       [&](Arena& a) {
         park(a, "x");
         a.segment().meta().next_due_ns = Timers::kNever;
       }},
      {"I13", Kind::kWorkQueue,
       [&](Arena& a) {
         const RecordNo record = park(a, "x");
         Queue::clear(a.segment().meta().timers[std::bit_width(
             Timers::tick_of(a.table().ticket(record)->deadline_ns) ^
             a.segment().meta().timers_from)]);
       }},
      {"I13", Kind::kFifo,
       [&](Arena& a) {
         claim_first(a);
         a.table().record(a.segment().meta().in_flight.head).txn = kParkedKey;
       }},
      {"I10", Kind::kStore, [](Arena& a) { a.segment().meta().heap_committed.fetch_add(1); }},
  };
  for (const Fault& fault : faults) {
    int fd = harness::anonymous_file();
    auto arena = harness::create(fd, fault.kind, 1 << 20);
    for (const char* key : {"a", "b", "c", "d"}) put(*arena, key, "value");
    bool was_there;
    CHECK(arena->erase("d", soon(), was_there) == Status::kOk);
    CHECK_WHOLE(*arena);
    fault.plant(*arena);
    bool reported = false;
    for (const std::string& violation : harness::violations(*arena)) {
      reported = reported || violation.starts_with(std::string(fault.invariant) + ":");
    }
    if (!reported) harness::fail(__FILE__, __LINE__, std::string("not reported: ") + fault.invariant);
    close(fd);
  }
}
