// What waits for its time in a work queue: the parked records (layout.hpp) that have a due time.
//
// A radix heap (Ahuja, Mehlhorn, Orlin and Tarjan, JACM 37, 1990): time goes forward only, so those
// that are due later than `timers_from` can lie in lists by the highest bit in which their time
// differs from it. List 0 has those that are due. As `timers_from` comes forward by one such bit,
// the lists below it are due, that of the bit itself is dealt out again, and those above it stay as
// they are: so a record moves down at most 64 times, and to add and to remove one is a list
// operation.
//
// Times are in ticks of about a millisecond; what is due between two ticks is due at the second.
//
// All of it is derived: repair makes the lists anew from the tickets.
// REQUIRES, everywhere: the lock is held for writing.
#pragma once

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "queue.hpp"

namespace shmcache {

class Timers {
 public:
  static constexpr uint64_t kNever = ~uint64_t{0};

  Timers(Segment& segment, Table& table, Queue& queue)
      : segment_(segment), table_(table), queue_(queue) {}

  // By the due time in its ticket.
  Status add(RecordNo record) {
    const Ticket* ticket = table_.ticket(record);
    if (ticket == nullptr) return Status::kCorrupt;
    const Status s = push(tick_of(ticket->deadline_ns.load(relaxed)), record);
    say_next();
    return s;
  }

  // REQUIRES: its due time is what it was when it was added.
  Status remove(RecordNo record) {
    const Ticket* ticket = table_.ticket(record);
    if (ticket == nullptr) return Status::kCorrupt;
    const uint32_t number = list_of(tick_of(ticket->deadline_ns.load(relaxed)));
    const Status s = queue_.unlink(list(number), record);
    note_empty(number);
    say_next();
    return s;
  }

  // Take out what is due, in the order of its times. Throws std::bad_alloc, and then nothing has
  // happened.
  Status take_due(uint64_t now_ns, std::vector<RecordNo>& due) {
    Meta& m = segment_.meta();
    const uint64_t from = m.timers_from.load(relaxed), now = std::max(from, now_ns >> kTickBits);
    const auto last = static_cast<uint32_t>(std::bit_width(now ^ from));
    uint64_t most = 0;
    for (uint32_t i = 0; i <= last; ++i) most += list(i).count.load(relaxed);
    if (most > table_.records_used()) return Status::kCorrupt;
    std::vector<std::pair<uint64_t, RecordNo>> taken;
    taken.reserve(most);
    due.reserve(most);
    for (uint32_t i = 0; i <= last; ++i) {
      for (RecordNo next = list(i).head.load(relaxed); next != kNoRecord;) {
        if (!table_.valid(next) || taken.size() == most) return Status::kCorrupt;
        const Ticket* ticket = table_.ticket(next);
        if (ticket == nullptr) return Status::kCorrupt;
        taken.emplace_back(ticket->deadline_ns.load(relaxed), next);
        next = table_.record(next).next.load(relaxed);
      }
      Queue::clear(list(i));
      note_empty(i);
    }
    m.timers_from.store(now, relaxed);
    std::sort(taken.begin(), taken.end());
    for (const auto& [at, record] : taken) {
      if (tick_of(at) <= now) {
        due.push_back(record);
      } else if (Status s = push(tick_of(at), record); s != Status::kOk) {
        return s;
      }
    }
    say_next();
    return Status::kOk;
  }

  // None, and time begins at `now_ns`.
  void clear(uint64_t now_ns) {
    Meta& m = segment_.meta();
    for (RecordList& each : m.timers) Queue::clear(each);
    m.timers_bitmap.store(0, relaxed);
    m.timers_from.store(now_ns >> kTickBits, relaxed);
    say_next();
  }

  uint32_t list_of(uint64_t tick) const {
    const uint64_t from = segment_.meta().timers_from.load(relaxed);
    return tick <= from ? 0 : static_cast<uint32_t>(std::bit_width(tick ^ from));
  }

  static constexpr uint64_t tick_of(uint64_t due_ns) {
    return (due_ns >> kTickBits) + ((due_ns & ((uint64_t{1} << kTickBits) - 1)) != 0);
  }

  // No record is due before.
  uint64_t soonest_ns() const {
    const Meta& m = segment_.meta();
    const uint64_t bitmap = m.timers_bitmap.load(relaxed), from = m.timers_from.load(relaxed);
    if (list(0).count.load(relaxed) != 0) return from << kTickBits;
    if (bitmap == 0) return kNever;
    // Those of list i have bit i - 1, which `from` has not, and the same bits above it.
    const auto bit = static_cast<uint32_t>(std::countr_zero(bitmap));
    return (from >> bit | 1) << bit << kTickBits;
  }

 private:
  static constexpr uint32_t kTickBits = 20;
  static constexpr auto relaxed = std::memory_order_relaxed;

  RecordList& list(uint32_t number) const { return segment_.meta().timers[number]; }

  Status push(uint64_t tick, RecordNo record) {
    const uint32_t number = list_of(tick);
    std::atomic<uint64_t>& bitmap = segment_.meta().timers_bitmap;
    if (number != 0) bitmap.store(bitmap.load(relaxed) | bit_of(number), relaxed);
    return queue_.push_tail(list(number), record);
  }

  void note_empty(uint32_t number) {
    std::atomic<uint64_t>& bitmap = segment_.meta().timers_bitmap;
    if (number != 0 && list(number).count.load(relaxed) == 0) {
      bitmap.store(bitmap.load(relaxed) & ~bit_of(number), relaxed);
    }
  }

  static constexpr uint64_t bit_of(uint32_t number) { return uint64_t{1} << (number - 1); }

  void say_next() { segment_.meta().next_due_ns.store(soonest_ns(), relaxed); }

  Segment& segment_;
  Table& table_;
  Queue& queue_;
};

}  // namespace shmcache
