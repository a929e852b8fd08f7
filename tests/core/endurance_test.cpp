// What only shows after very many operations, counts, sleepers or repairs; and pages that go away.
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "check.hpp"

using namespace shmcache;
using harness::drop;
using harness::put;
using harness::soon;
using harness::value_of;

CASE(ten_million_changes_stay_in_bounds,
     "adds, updates and deletes of mixed sizes never take more than twice the peak of used bytes") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore, uint64_t{1} << 30);
  constexpr uint64_t kChanges = 10'000'000, kKeys = 20'000;
  harness::Random random{20261124};
  const std::string value(16'000, 'v');
  const Meta& m = arena->segment().meta();
  uint64_t peak = 0;
  for (uint64_t i = 0; i < kChanges; ++i) {
    const std::string key = "key-" + std::to_string(random(kKeys));
    bool flag = false;
    if (random(4) == 0) {
      CHECK(arena->erase(key, soon(), flag) == Status::kOk);
    } else {
      // Mostly small, some large, and the mixture drifts: what fragments an allocator.
      const uint64_t drift = 200 + i / (kChanges / 16) * 100;
      const uint64_t size = random(50) == 0 ? random(value.size()) : random(drift);
      CHECK(arena->upsert({key, {value.data(), size}}, Upsert::kAlways, soon(), flag) ==
            Status::kOk);
    }
    peak = std::max(peak, m.used_bytes.load(std::memory_order_relaxed));
  }
  const uint64_t committed = arena->segment().committed();
  std::printf("after %lu changes: %.1f MB committed, at most %.1f MB used at a time\n",
              static_cast<unsigned long>(kChanges), static_cast<double>(committed) / 1e6,
              static_cast<double>(peak) / 1e6);
  CHECK(committed <= 2 * peak);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(ten_thousand_repairs_hide_nothing,
     "a key that stays is found by every read through 10,000 repairs") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore, 1 << 20);
  for (int i = 0; i < 50; ++i) put(*arena, "stable-" + std::to_string(i), std::to_string(i));
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0};
  std::thread reader([&] {
    auto own = harness::attach(fd, Kind::kStore, false);
    for (uint64_t i = 0; !stop.load(); ++i) {
      Hit hit;
      const Status s = own->find("stable-" + std::to_string(i % 50), hit);
      CHECK(s == Status::kOk || s == Status::kBusy);
      reads.fetch_add(s == Status::kOk ? 1 : 0);
    }
  });
  uint64_t repairs = 0;
  for (; repairs < 10'000 || reads.load() < 10'000; ++repairs) {
    CHECK(arena->testing_repair(soon()) == Status::kOk);
  }
  stop.store(true);
  reader.join();
  CHECK(arena->segment().meta().repairs.load() == repairs);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(counts_come_round, "wake-ups, queue positions and generations pass 2^32 and their own limits") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo, 1 << 20);
  Control& c = arena->segment().control();
  c.ready_word.store(0xfffffffeu);
  c.change_word.store(0xfffffffeu);
  arena->segment().meta().next_time.store(0xfffffffeull);
  for (auto& slot : c.slots) slot.generation.store(kGenerationMask - 1);
  std::thread consumer([&] {
    for (int i = 0; i < 8; ++i) {
      std::vector<Item> items;
      Status s;
      while ((s = arena->try_pop(1, soon(), items)) == Status::kEmpty) {
        CHECK(arena->wait_ready(soon()) != Status::kEmpty);
      }
      CHECK(s == Status::kOk && items[0].key() == "k" + std::to_string(i));
    }
  });
  for (int i = 0; i < 8; ++i) {
    while (c.ready_sleepers.load() == 0) std::this_thread::yield();  // it is about to sleep
    put(*arena, "k" + std::to_string(i), "v");
    while (arena->size() != 0) std::this_thread::yield();
  }
  consumer.join();
  CHECK(c.ready_word.load() < 100 && arena->segment().meta().next_time.load() > 0xffffffffull);
  // Owners that follow each other in one slot, past the last generation.
  for (int i = 0; i < 4; ++i) {
    const pid_t pid = fork();
    if (pid == 0) {
      put(*arena, "child", "v");
      const uint32_t generation = arena->segment().owner_id() & kGenerationMask;
      _exit(generation == 0 ? 1 : 0);
    }
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  }
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(one_item_wakes_no_herd, "of 64 sleepers an add wakes one, and the baton goes from hand to hand") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo, 1 << 20);
  constexpr int kSleepers = 64, kItems = 200;
  std::atomic<int> taken{0};
  std::vector<std::thread> consumers;
  for (int i = 0; i < kSleepers; ++i) {
    consumers.emplace_back([&] {
      for (;;) {
        std::vector<Item> items;
        const Status s = arena->try_pop(1, soon(), items);
        if (s == Status::kShutDown) return;
        if (s == Status::kOk) taken.fetch_add(1);
        if (s == Status::kEmpty) (void)arena->wait_ready(soon());
      }
    });
  }
  Control& c = arena->segment().control();
  for (int i = 0; i < kItems; ++i) {
    put(*arena, "k" + std::to_string(i), "v");
    if (i % 10 == 0) {
      while (taken.load() <= i) std::this_thread::yield();
    }
  }
  while (taken.load() < kItems) std::this_thread::yield();
  // Each move of the word wakes at most one. An item costs at most its own wake-up and the baton
  // of the consumer before.
  const uint32_t wakes = c.ready_word.load();
  std::printf("%d items to %d sleepers: %u wake-ups\n", kItems, kSleepers, wakes);
  CHECK(wakes <= 2 * kItems);
  CHECK(arena->shut_down(Arena::ShutDown::kEnd, false, soon()) == Status::kOk);
  for (auto& consumer : consumers) consumer.join();
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(lost_pages_end_nobody, "a file that is truncated under a handle ends no call of it, and no process") {
  for (Kind kind : {Kind::kStore, Kind::kFifo}) {
    for (uint64_t keep : {uint64_t{0}, uint64_t{4096}, uint64_t{9000}, uint64_t{1} << 18}) {
      int fd = harness::anonymous_file();
      auto arena = harness::create(fd, kind, 1 << 20);
      auto reader = harness::attach(fd, kind, false);
      for (int i = 0; i < 50; ++i) put(*arena, "k" + std::to_string(i), std::string(300, 'v'));
      CHECK(!arena->segment().lost() && !reader->segment().lost());
      CHECK(ftruncate(fd, static_cast<off_t>(keep)) == 0);
      for (Arena* handle : {reader.get(), arena.get()}) {
        const uint64_t deadline = now_ns() + 2'000'000'000u;
        bool flag = false;
        std::vector<Item> items;
        std::vector<std::string> violations;
        View view;
        std::unordered_map<uint32_t, Item> copies;
        for (int i = 0; i < 50; ++i) {
          Hit hit;
          char value[300];
          if (handle->find("k" + std::to_string(i), hit) == Status::kOk) {
            (void)handle->table().read_value(hit, value);
          }
        }
        (void)handle->refresh(view, [](RecordNo, uint64_t) { return true; }, true, deadline, copies);
        (void)handle->upsert({"new", {"v", 1}}, Upsert::kAlways, deadline, flag);
        (void)handle->replace({{"new", {"v", 1}}}, "rv", deadline);
        (void)handle->erase("k1", deadline, flag);
        (void)handle->try_pop(1, deadline, items);
        (void)handle->check(deadline, violations);
        CHECK(handle->segment().lost());
      }
      reader.reset();
      arena.reset();
      close(fd);
    }
  }
}
