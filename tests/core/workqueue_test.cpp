// The work queue of the core: timers, and counts of failures.
#include <map>

#include "check.hpp"

using namespace shmcache;
using harness::soon;

namespace {

std::vector<std::string> parked(Arena& arena) {
  std::vector<Arena::Held> held;
  CHECK(arena.held(Table::Sought::kParked, false, soon(), held) == Status::kOk);
  std::vector<std::string> keys;
  for (const Arena::Held& one : held) keys.emplace_back(one.item.key());
  return keys;
}

void enqueue(Arena& arena, const std::string& key, uint64_t delay_ns) {
  bool open = false;
  CHECK(arena.enqueue(key, 0, delay_ns, soon(), open) == Status::kOk && open);
}

}  // namespace

CASE(timers_come_due, "what is due comes once, in its order, whatever the steps of time") {
  harness::Random random{77};
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kWorkQueue);
  std::vector<RecordNo> records;
  for (int i = 0; i < 300; ++i) {
    const std::string key = "k" + std::to_string(i);
    enqueue(*arena, key, 1'000'000'000'000);
    RecordNo record;
    CHECK(arena->table().locate_held(arena->table().key(key.data(), key.size()),
                                     Table::Sought::kParked, record) == Status::kOk);
    records.push_back(record);
  }
  CHECK_WHOLE(*arena);
  // With a time of its own, which goes on as fast as the test likes.
  Queue queue(arena->segment(), arena->table());
  Timers timers(arena->segment(), arena->table(), queue);
  uint64_t now = now_ns();
  std::multimap<uint64_t, RecordNo> model;
  auto later = [&] { return now + 1 + random(uint64_t{1} << (1 + random(44))); };
  auto add = [&](RecordNo record) {
    const uint64_t due = later();
    arena->table().ticket(record)->deadline_ns.store(due);
    CHECK(timers.add(record) == Status::kOk);
    model.emplace(due, record);
  };
  for (RecordNo record : records) {
    CHECK(timers.remove(record) == Status::kOk);
    add(record);
  }
  uint64_t came = 0;
  for (int round = 0; round < 5000; ++round) {
    CHECK_WHOLE(*arena);
    const uint64_t next = model.begin()->first;
    CHECK(timers.soonest_ns() >> 20 <= Timers::tick_of(next));
    now = random(4) == 0 ? std::max(now, timers.soonest_ns())
                         : now + random(uint64_t{1} << (1 + random(42)));
    std::vector<RecordNo> due;
    CHECK(timers.take_due(now, due) == Status::kOk);
    for (RecordNo record : due) {
      CHECK(!model.empty() && model.begin()->first <= now);
      const uint64_t at = arena->table().ticket(record)->deadline_ns.load();
      CHECK(at == model.begin()->first);  // in order
      for (auto [here, end] = model.equal_range(at); here != end; ++here) {
        if (here->second == record) {
          model.erase(here);
          break;
        }
      }
      ++came;
    }
    CHECK(model.empty() || Timers::tick_of(model.begin()->first) > now >> 20);
    for (RecordNo record : due) add(record);
    auto moved = model.begin();
    std::advance(moved, static_cast<long>(random(model.size())));
    const RecordNo record = moved->second;
    CHECK(timers.remove(record) == Status::kOk);
    model.erase(moved);
    add(record);
  }
  CHECK(came > 5000);
  close(fd);
}

CASE(a_key_has_one_place, "a key is queued once, parked once, and its failures follow it") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kWorkQueue);
  uint64_t count = 0;
  for (int i = 0; i < 3; ++i) enqueue(*arena, "a", 0);
  CHECK(arena->waiting() == 1);
  enqueue(*arena, "a", 1'000'000'000'000);
  enqueue(*arena, "a", 2'000'000'000'000);
  CHECK(parked(*arena) == std::vector<std::string>{"a"});
  Item item;
  Arena::Claim claim;
  CHECK(arena->try_claim(0, soon(), item, claim) == Status::kOk && item.key() == "a");
  CHECK(arena->count_failure("a", soon(), count) == Status::kOk && count == 0);
  CHECK(arena->count_failure("a", soon(), count) == Status::kOk && count == 1);
  enqueue(*arena, "a", 0);
  CHECK(arena->waiting() == 0);  // behind the claim
  bool ours = false;
  CHECK(arena->end_claim(claim, Arena::End::kFailed, soon(), ours) == Status::kOk && ours);
  CHECK(arena->waiting() == 1);
  CHECK(arena->failures("a", soon(), count) == Status::kOk && count == 3);
  CHECK(arena->try_claim(0, soon(), item, claim) == Status::kOk);
  CHECK(arena->end_claim(claim, Arena::End::kDone, soon(), ours) == Status::kOk && ours);
  CHECK(arena->waiting() == 0 && arena->size() == 0);
  CHECK(arena->failures("a", soon(), count) == Status::kOk && count == 3);
  CHECK_WHOLE(*arena);
  CHECK(arena->forget("a", soon()) == Status::kOk);
  CHECK(arena->failures("a", soon(), count) == Status::kOk && count == 0);
  CHECK(parked(*arena) == std::vector<std::string>{"a"});  // its delay stands
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(a_key_is_retried, "a failure ends its claim once, and parks the key without asking for memory") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kWorkQueue);
  uint64_t count = 0;
  Item item;
  Arena::Claim claim;
  bool ours = false;
  enqueue(*arena, "a", 0);
  CHECK(arena->try_claim(0, soon(), item, claim) == Status::kOk);
  const uint64_t used = arena->segment().meta().used_bytes.load();
  CHECK(arena->retry_claim(claim, 1'000'000'000'000, soon(), ours) == Status::kOk && ours);
  CHECK(arena->segment().meta().used_bytes.load() == used);
  CHECK(parked(*arena) == std::vector<std::string>{"a"});
  CHECK(arena->failures("a", soon(), count) == Status::kOk && count == 1);
  for (auto how : {Arena::End::kDone, Arena::End::kFailed, Arena::End::kReleased}) {
    CHECK(arena->end_claim(claim, how, soon(), ours) == Status::kOk && !ours);  // it is over
  }
  CHECK(arena->retry_claim(claim, 0, soon(), ours) == Status::kOk && !ours);
  CHECK_WHOLE(*arena);
  enqueue(*arena, "a", 0);  // while it is parked, worked on, and added once more
  CHECK(arena->try_claim(0, soon(), item, claim) == Status::kOk);
  enqueue(*arena, "a", 0);
  CHECK(arena->retry_claim(claim, 1, soon(), ours) == Status::kOk && ours);
  CHECK(arena->waiting() == 1);
  CHECK(arena->failures("a", soon(), count) == Status::kOk && count == 2);
  CHECK_WHOLE(*arena);
  close(fd);
}

CASE(tokens, "a bucket gives its burst at once, and then one token an interval") {
  int fd = harness::anonymous_file();
  auto arena = harness::create(fd, Kind::kWorkQueue);
  constexpr uint64_t kInterval = 1'000'000'000'000;
  uint64_t wait = 1, before = 0;
  for (int i = 0; i < 3; ++i) {
    CHECK(arena->take_token(kInterval, 3, soon(), wait) == Status::kOk && wait == 0);
  }
  for (int i = 1; i < 4; ++i) {
    before = wait;
    CHECK(arena->take_token(kInterval, 3, soon(), wait) == Status::kOk);
    CHECK(wait > before && wait <= kInterval * static_cast<uint64_t>(i));
  }
  for (int i = 0; i < 40; ++i) {  // as slow as can be said, and more than 64 bits of time
    before = wait;
    CHECK(arena->take_token(1'000'000'000'000'000'000, 100, soon(), wait) == Status::kOk);
    CHECK(wait > 0 && (i < 2 || wait >= before - kInterval));
  }
  close(fd);
}
