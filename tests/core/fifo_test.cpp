// The queue: order, positions, and one delivery of each item.
#include <atomic>
#include <deque>
#include <thread>

#include "check.hpp"

using namespace shmcache;
using harness::put;
using harness::soon;

CASE(fifo_like_a_deque, "random adds, updates, deletes and pops keep the order of a deque (I7)") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo);
  std::deque<std::pair<std::string, std::string>> model;
  harness::Random random{1234567891011u};
  auto find = [&](const std::string& key) {
    return std::find_if(model.begin(), model.end(), [&](auto& item) { return item.first == key; });
  };
  for (int step = 0; step < 20000; ++step) {
    const std::string key = "k" + std::to_string(random(200)), value = std::to_string(step);
    switch (random(5)) {
      case 0:
      case 1:
        put(*arena, key, value);
        if (auto at = find(key); at != model.end()) {
          at->second = value;
        } else {
          model.emplace_back(key, value);
        }
        break;
      case 2: {
        bool wrote = false;
        CHECK(arena->upsert({key, {value.data(), value.size()}}, Upsert::kIfAbsent, soon(), wrote) ==
              Status::kOk);
        CHECK(wrote == (find(key) == model.end()));
        if (wrote) model.emplace_back(key, value);
        break;
      }
      case 3: {
        bool was_there = false;
        CHECK(arena->erase(key, soon(), was_there) == Status::kOk);
        if (auto at = find(key); at != model.end()) model.erase(at);
        break;
      }
      default: {
        std::vector<Item> items;
        const uint64_t most = 1 + random(3);
        const Status s = arena->try_pop(most, soon(), items);
        CHECK(s == (model.empty() ? Status::kEmpty : Status::kOk));
        for (const Item& item : items) {
          CHECK(item.key() == model.front().first && item.value() == model.front().second);
          model.pop_front();
        }
      }
    }
    if (step % 500 == 0) {
      if (step % 1500 == 0) CHECK(arena->testing_repair(soon()) == Status::kOk);
      CHECK_WHOLE(*arena);
      std::vector<Item> items;
      CHECK(arena->queued(true, soon(), items) == Status::kOk);
      CHECK(items.size() == model.size());
      for (size_t i = 0; i < items.size(); ++i) CHECK(items[i].key() == model[i].first);
    }
  }
  close(fd);
}

CASE(fifo_replace, "replace makes queue and set the list, in its order; synced after the last") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo);
  auto entry = [](const char* key, const char* value) {
    return Entry{key, {value, std::strlen(value)}};
  };
  CHECK(!arena->has_synced());
  CHECK(arena->replace({entry("b", "1"), entry("a", "1"), entry("b", "2")}, "1", soon()) ==
        Status::kOk);
  CHECK_WHOLE(*arena);
  CHECK(arena->size() == 2 && !arena->has_synced());
  std::vector<Item> items;
  CHECK(arena->try_pop(1, soon(), items) == Status::kOk);
  CHECK(items[0].key() == "b" && items[0].value() == "2" && !arena->has_synced());
  put(*arena, "later", "x");
  bool was_there = false;
  CHECK(arena->erase("a", soon(), was_there) == Status::kOk && was_there);
  CHECK(arena->has_synced());  // a deleted initial item does not hold it up for ever
  CHECK(arena->replace({entry("z", "1"), entry("later", "y")}, "2", soon()) == Status::kOk);
  CHECK_WHOLE(*arena);
  items.clear();
  CHECK(arena->try_pop(9, soon(), items) == Status::kOk);
  CHECK(items.size() == 2 && items[0].key() == "z" && items[1].value() == "y");
  CHECK(arena->replace({}, "3", soon()) == Status::kOk && arena->size() == 0);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(one_delivery, "producers and consumers on threads: each item is delivered exactly once") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo);
  constexpr int kProducers = 2, kConsumers = 3, kEach = 4000;
  std::vector<std::atomic<int>> delivered(kProducers * kEach);
  std::atomic<int> total{0};
  std::vector<std::thread> threads;
  for (int p = 0; p < kProducers; ++p) {
    threads.emplace_back([&, p] {
      for (int i = 0; i < kEach; ++i) {
        const int number = p * kEach + i;
        put(*arena, "item-" + std::to_string(number), std::to_string(number));
      }
    });
  }
  for (int c = 0; c < kConsumers; ++c) {
    threads.emplace_back([&] {
      for (;;) {
        std::vector<Item> items;
        const Status s = arena->try_pop(2, soon(), items);
        if (s == Status::kShutDown) return;
        if (s == Status::kEmpty) {
          CHECK(arena->wait_ready(kForever) == Status::kOk);
          continue;
        }
        CHECK(s == Status::kOk);
        for (const Item& item : items) {
          delivered[static_cast<size_t>(std::stoi(std::string(item.value())))].fetch_add(1);
        }
        if (total.fetch_add(static_cast<int>(items.size())) + static_cast<int>(items.size()) ==
            kProducers * kEach) {
          CHECK(arena->shut_down(Arena::ShutDown::kEnd, false, soon()) == Status::kOk);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (auto& count : delivered) CHECK(count == 1);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(claims_beside_readers, "keys are claimed by one at a time and end once, whoever reads, adds or deletes") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo);
  constexpr int kKeys = 20, kRounds = 1500;
  std::atomic<int> holders[kKeys] = {};
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> done{0};
  auto key_of = [](uint64_t number) { return "item-" + std::to_string(number); };
  std::vector<std::thread> threads, others;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    threads.emplace_back([&, seed] {
      harness::Random random{seed};
      for (;;) {
        Item item;
        Arena::Claim claim;
        const Status s = arena->try_claim(0, soon(), item, claim);
        if (s == Status::kShutDown) return;
        if (s == Status::kEmpty) {
          CHECK(arena->wait_ready(kForever) == Status::kOk);
          continue;
        }
        CHECK(s == Status::kOk);
        auto& holder = holders[std::stoi(std::string(item.key().substr(5)))];
        CHECK(holder.fetch_add(1) == 0);  // nobody else has the key
        if (random(4) == 0) std::this_thread::yield();
        holder.fetch_sub(1);
        const auto how = static_cast<Arena::End>(random(3));
        bool ours = false;
        CHECK(arena->end_claim(claim, how, soon(), ours) == Status::kOk && ours);
        CHECK(arena->end_claim(claim, how, soon(), ours) == Status::kOk && !ours);
        if (how == Arena::End::kDone) done.fetch_add(1);
      }
    });
  }
  others.emplace_back([&] {
    harness::Random random{7};
    while (!stop.load()) {
      Hit hit;
      const Status s = arena->find(key_of(random(kKeys)), hit);
      CHECK(s == Status::kOk || s == Status::kMiss || s == Status::kBusy);
      if (s != Status::kOk) continue;
      std::string value(hit.value_size, '\0');
      const bool whole = arena->table().read_value(hit, value.data());
      CHECK(!whole || value == std::string(value.size(), 'v'));
    }
  });
  harness::Random random{11};
  for (int i = 0; i < kRounds; ++i) {
    const std::string key = key_of(random(kKeys));
    if (random(5) == 0) harness::drop(*arena, key);
    else put(*arena, key, std::string(random(200), 'v'));
  }
  CHECK(arena->shut_down(Arena::ShutDown::kEnd, false, soon()) == Status::kOk);
  for (auto& thread : threads) thread.join();
  stop.store(true);
  for (auto& thread : others) thread.join();
  std::vector<Arena::Held> held;
  CHECK(arena->held(Table::Sought::kInFlight, false, soon(), held) == Status::kOk && held.empty());
  CHECK(arena->size() == 0 && done.load() > 0);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(priorities, "urgent items overtake those queued up to so much earlier, and none of their own") {
  harness::Random random{5};
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo);
  struct Queued {
    uint64_t effective;  // as if queued then
    uint32_t number;
  };
  std::vector<Queued> model;
  bool wrote = false;
  uint64_t time = now_ns() + 1000 * kPriorityStepNs;
  for (uint32_t i = 0; i < 500; ++i) {
    time += 1 + random(kPriorityStepNs / 2);
    arena->segment().meta().next_time.store(time);  // it is as late as that
    const std::string key = std::to_string(i);
    Entry entry{key, {"x", 1}};
    entry.priority = static_cast<uint32_t>(random(kPriorities));
    CHECK(arena->upsert(entry, Upsert::kAlways, soon(), wrote) == Status::kOk);
    model.push_back({time - entry.priority * kPriorityStepNs, i});
  }
  CHECK_WHOLE(*arena);
  std::stable_sort(model.begin(), model.end(),
                   [](const Queued& a, const Queued& b) { return a.effective < b.effective; });
  std::vector<Item> listed, popped;
  CHECK(arena->queued(false, soon(), listed) == Status::kOk && listed.size() == model.size());
  for (size_t i = 0; i < model.size(); i += popped.size()) {
    popped.clear();
    CHECK(arena->try_pop(1 + random(9), soon(), popped) == Status::kOk);
    for (size_t k = 0; k < popped.size(); ++k) {
      CHECK(popped[k].key() == std::to_string(model[i + k].number));
      CHECK(listed[i + k].key() == popped[k].key());
    }
  }
  CHECK(arena->waiting() == 0);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(an_update_keeps_its_time, "what becomes urgent stands where it would, had it been so from the first") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kFifo);
  auto add = [&](const char* key, uint32_t priority) {
    Entry entry{key, {"x", 1}};
    entry.priority = priority;
    bool wrote = false;
    CHECK(arena->upsert(entry, Upsert::kAlways, soon(), wrote) == Status::kOk && wrote);
    CHECK_WHOLE(*arena);
  };
  for (const char* key : {"a", "b", "c", "d"}) add(key, 0);
  add("urgent", 7);
  add("c", 7);  // queued before "urgent"
  add("d", 1);
  add("urgent", 0);
  std::vector<Item> popped;
  CHECK(arena->try_pop(9, soon(), popped) == Status::kOk);
  std::string order;
  for (const Item& item : popped) order += item.key().substr(0, 1);
  CHECK(order == "cdabu");
  close(fd);
}
