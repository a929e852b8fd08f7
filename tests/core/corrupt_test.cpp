// A damaged or hostile segment: words of the data pages overwritten at random, beneath every
// operation. The results may be wrong, and mostly are kCorrupt; what must not happen is a crash, an
// access outside the segment (ASan, UBSan, the end of the map) or a call that does not return.
#include <atomic>
#include <thread>

#include "check.hpp"

using namespace shmcache;
using harness::soon;

namespace {

void use(Arena& arena, harness::Random& random) {
  std::vector<Item> items;
  std::vector<std::string> violations;
  View view;
  std::unordered_map<uint32_t, Item> copies;
  bool flag = false;
  Hit hit;
  const std::string key = "k" + std::to_string(random(60)), value(random(500), 'v');
  const Entry entry{key, {value.data(), value.size()}};
  const uint64_t deadline = now_ns() + 5'000'000'000u;
  switch (random(14)) {
    case 0: (void)arena.upsert(entry, Upsert::kAlways, deadline, flag); break;
    case 1: (void)arena.upsert(entry, Upsert::kIfAbsent, deadline, flag); break;
    case 2: (void)arena.erase(key, deadline, flag); break;
    case 3: (void)arena.replace({entry, entry}, "rv", deadline); break;
    case 4: (void)arena.upsert_many({entry, entry}, deadline); break;
    case 5: (void)arena.try_pop(1 + random(1000), deadline, items); break;
    case 6: (void)arena.queued(true, deadline, items); break;
    case 7: (void)arena.check(deadline, violations); break;
    case 8: (void)arena.testing_repair(deadline); break;
    case 9:
      (void)arena.refresh(view, [](RecordNo, uint64_t) { return true; }, true, deadline, copies);
      break;
    case 10: {
      Item item;
      Arena::Claim claim;
      if (arena.try_claim(random(2), deadline, item, claim) == Status::kOk && random(3) != 0) {
        (void)arena.end_claim(claim, static_cast<Arena::End>(random(3)), deadline, flag);
      }
      break;
    }
    case 11: (void)arena.settle_dead(key, random(2) == 0, deadline, flag); break;
    case 12: {
      std::vector<Arena::Held> held;
      (void)arena.held(random(2) == 0 ? Table::Sought::kDead : Table::Sought::kInFlight, true,
                          deadline, held);
      break;
    }
    default:
      if (arena.find(key, hit) == Status::kOk) {
        std::string copy(hit.value_size, '\0');
        (void)arena.table().read_value(hit, copy.data());
      }
      (void)arena.has_synced();
      (void)arena.resource_version();
  }
}

// Values that have hurt somebody somewhere.
uint64_t nasty(harness::Random& random) {
  const uint64_t values[] = {0, 1, 7, 16, 48, 4095, 4096, 0x7fffffff, 0x80000000, 0xffffffff,
                             uint64_t{3} << 61, ~uint64_t{0}, ~uint64_t{0} - 15, random(1 << 16),
                             random(~uint64_t{0})};
  return values[random(std::size(values))];
}

}  // namespace

CASE(corrupt_words_never_crash, "whatever the data pages hold, every operation returns, in bounds") {
  harness::Random random{20261123};
  for (int round = 0; round < 3000; ++round) {
    const Kind kind = round % 2 == 0 ? Kind::kStore : Kind::kFifo;
    int fd = harness::anonymous_file();
    auto arena = harness::create(fd, kind, 1 << 20);
    arena->segment().header().max_attempts = 2;
    auto reader = harness::attach(fd, kind, false);
    for (int i = 0; i < 40; ++i) use(*arena, random);
    Segment& segment = arena->segment();
    struct {
      void* begin;
      uint64_t words;
    } const regions[] = {
        {&segment.meta(), sizeof(Meta) / 8},
        {&segment.meta(), 40},  // root, watermarks, counters, queue ends
        {segment.index(0), 1024},
        {segment.index(1), 1024},
        {segment.records(), 64 * sizeof(Record) / 8},
        {segment.heap(), segment.meta().heap_committed / 8},
    };
    for (uint64_t hits = 1 + random(4); hits > 0; --hits) {
      const auto& region = regions[random(std::size(regions))];
      auto* word = static_cast<uint64_t*>(region.begin) + random(region.words);
      store_word(word, random(3) == 0 ? load_word(word) ^ (uint64_t{1} << random(64))
                                      : nasty(random));
    }
    for (int i = 0; i < 30; ++i) use(random(3) == 0 ? *reader : *arena, random);
    reader.reset();
    arena.reset();
    close(fd);
  }
}

CASE(bits_that_flip_under_reads, "words that another thread overwrites while readers use them lead no "
                                 "reader astray") {
  harness::Random random{20261125};
  for (int round = 0; round < 150; ++round) {
    const Kind kind = round % 2 == 0 ? Kind::kStore : Kind::kFifo;
    int fd = harness::anonymous_file();
    auto arena = harness::create(fd, kind, 1 << 20);
    for (int i = 0; i < 60; ++i) use(*arena, random);
    std::atomic<bool> stop{false};
    Segment& segment = arena->segment();
    const uint64_t seed = 1 + random(1 << 30);
    std::thread flipper([&] {
      harness::Random own{seed};
      struct {
        void* begin;
        uint64_t words;
      } const regions[] = {{&segment.meta(), 40},
                           {segment.index(0), 1024},
                           {segment.records(), 64 * sizeof(Record) / 8},
                           {segment.heap(), 512}};
      while (!stop.load(std::memory_order_relaxed)) {
        const auto& region = regions[own(std::size(regions))];
        auto* word = static_cast<uint64_t*>(region.begin) + own(region.words);
        const uint64_t was = load_word(word);
        store_word(word, own(3) == 0 ? was ^ (uint64_t{1} << own(64)) : nasty(own));
        store_word(word, was);  // mostly whole, so that readers get far
      }
    });
    auto reader = harness::attach(fd, kind, false);
    for (int i = 0; i < 400; ++i) {
      const std::string key = "k" + std::to_string(random(60));
      Hit hit;
      if (reader->find(key, hit) == Status::kOk) {
        std::string copy(hit.value_size, '\0');
        (void)reader->table().read_value(hit, copy.data());
      }
      (void)reader->has_synced();
      (void)reader->resource_version();
      if (i % 20 == 0) {
        View view;
        std::unordered_map<uint32_t, Item> copies;
        std::vector<Item> items;
        const uint64_t deadline = now_ns() + 5'000'000'000u;
        (void)reader->refresh(view, [](RecordNo, uint64_t) { return true; }, true, deadline, copies);
        (void)reader->queued(true, deadline, items);
      }
    }
    stop.store(true);
    flipper.join();
    reader.reset();
    arena.reset();
    close(fd);
  }
}
