// Lock-free readers beside a writer: what is there is found, and never torn.
#include <atomic>
#include <cstring>
#include <thread>

#include "check.hpp"

using namespace shmcache;
using harness::soon;

namespace {

std::string filled(int number, size_t size) {
  return std::string(size, static_cast<char>('a' + number % 26));
}

}  // namespace

CASE(readers_never_miss_or_tear, "keys that stay are found whole in every read, through updates, "
                                 "churn, index rebuilds, replace and repair") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  constexpr int kStable = 100;
  std::vector<std::string> keys, values;
  std::vector<Entry> entries;
  for (int i = 0; i < kStable; ++i) {
    keys.push_back("stable-" + std::to_string(i));
    values.push_back(filled(i, 40));
  }
  for (int i = 0; i < kStable; ++i) entries.push_back({keys[i], {values[i].data(), 40}});
  CHECK(arena->upsert_many(entries, soon()) == Status::kOk);

  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0};
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&, r] {
      harness::Random random{77u + static_cast<uint64_t>(r)};
      std::string value;
      while (!stop.load()) {
        const std::string& key = keys[random(kStable)];
        Hit hit;
        const Status s = arena->find(key, hit);
        CHECK(s == Status::kOk || s == Status::kBusy);
        if (s == Status::kOk) {
          value.assign(hit.value_size, '?');
          if (arena->table().read_value(hit, value.data())) {
            CHECK(!value.empty());
            CHECK(value.find_first_not_of(value[0]) == std::string::npos);
            reads.fetch_add(1);
          }
        }
      }
    });
  }
  std::thread lister([&] {
    View view;
    auto nothing = [](RecordNo, uint64_t) { return false; };
    while (!stop.load()) {
      std::unordered_map<uint32_t, Item> copies;
      const Status s = arena->refresh(view, nothing, false, soon(), copies);
      CHECK(s == Status::kOk);
      CHECK(view.live >= kStable);
    }
  });
  harness::Random random{424242};
  for (int i = 0; i < 30000 || reads.load() < 1000; ++i) {
    bool wrote = false, was_there = false;
    const std::string value = filled(i, random(4) == 0 ? 1 + random(5000) : 1 + random(60));
    if (random(3) == 0) {
      CHECK(arena->upsert({keys[random(kStable)], {value.data(), value.size()}}, Upsert::kAlways,
                          soon(), wrote) == Status::kOk);
    } else {
      const std::string key = "churn-" + std::to_string(random(2000));
      if (random(2) == 0) {
        CHECK(arena->erase(key, soon(), was_there) == Status::kOk);
      } else {
        CHECK(arena->upsert({key, {value.data(), value.size()}}, Upsert::kAlways, soon(), wrote) ==
              Status::kOk);
      }
    }
    if (i % 500 == 0) CHECK(arena->testing_repair(soon()) == Status::kOk);
    if (i % 1000 == 0) CHECK(arena->replace(entries, "rv", soon()) == Status::kOk);
  }
  stop.store(true);
  for (auto& reader : readers) reader.join();
  lister.join();
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(replace_is_one_instant, "a reader that saw the new list never sees the old one after it") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kStore);
  constexpr int kKeys = 16;
  std::vector<std::string> keys;
  for (int i = 0; i < kKeys; ++i) keys.push_back("key-" + std::to_string(i));
  auto write = [&](uint64_t round) {
    std::vector<Entry> entries;
    for (const auto& key : keys) entries.push_back({key, {&round, sizeof round}});
    CHECK(arena->replace(entries, std::to_string(round), soon()) == Status::kOk);
  };
  write(1);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> rounds{0};
  std::thread reader([&] {
    uint64_t newest = 0;
    harness::Random random{5};
    while (!stop.load()) {
      Hit hit;
      uint64_t value = 0;
      if (arena->find(keys[random(kKeys)], hit) != Status::kOk) continue;
      if (!arena->table().read_value(hit, &value)) continue;
      CHECK(value >= newest);
      newest = value;
      rounds.fetch_add(1);
    }
  });
  for (uint64_t round = 2; round < 3000 || rounds.load() < 1000; ++round) write(round);
  stop.store(true);
  reader.join();
  CHECK_WHOLE(*arena);
  close(fd);
}
