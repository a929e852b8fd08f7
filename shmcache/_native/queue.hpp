// The order of a FIFO: a doubly linked list through the LIVE records of each priority, in ascending
// `seq` (I7), but for those whose key is in flight: they wait for the end of the claim (claims.cpp).
// What is popped next is the head with the smallest `seq`. Two lists more hold the records in flight
// and the dead letters (I12).
//
// Keyed: a key is in the queue at most once, because a record is. An update takes over the
// position (and `seq`) of the record it replaces; a delete unlinks, so there are no ghosts; a key
// added again gets a new `seq` and goes to the tail; one whose pop is undone has its old `seq`.
//
// A `seq` (Position) has the time of its queueing, in nanoseconds of CLOCK_MONOTONIC_COARSE, or one
// more than the last one given if that is later: a position first, and so also the age of an item.
// Where the clocks of two processes differ (time namespaces) the order holds and the age is off.
//
// All of it is derived: repair sorts the LIVE records by `seq` and links them anew. So the order of the
// stores below does not matter, only that they are bounded and checked.
// REQUIRES, everywhere: the lock is held for writing.
#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include "futex.hpp"
#include "layout.hpp"
#include "segment.hpp"
#include "status.hpp"
#include "table.hpp"

namespace shmcache {

class Queue {
 public:
  Queue(Segment& segment, Table& table) : segment_(segment), table_(table) {}

  RecordList& in_flight() const { return segment_.meta().in_flight; }
  RecordList& dead() const { return segment_.meta().dead; }

  // Of the waiting in their order, without taking them. By one cursor, each once.
  class Cursor {
   public:
    explicit Cursor(const Queue& queue) : table_(queue.table_) {
      const Meta& m = queue.segment_.meta();
      for (uint64_t rest = m.waiting_bitmap.load(std::memory_order_relaxed); rest != 0;
           rest &= rest - 1) {
        const auto priority = static_cast<uint32_t>(std::countr_zero(rest));
        if (priority >= kPriorities) break;
        heads_[used_++] = m.waiting[priority].head.load(std::memory_order_relaxed);
      }
    }
    // kNoRecord at the end, and where a link leads nowhere.
    RecordNo next() {
      if (used_ == 1) return advance(0);  // mostly all are alike
      uint32_t best = 0;
      uint64_t least = ~uint64_t{0};
      for (uint32_t i = 0; i < used_; ++i) {
        if (heads_[i] == kNoRecord || !table_.valid(heads_[i])) continue;
        const uint64_t seq = table_.record(heads_[i]).seq.load(std::memory_order_relaxed);
        if (seq < least) {
          least = seq;
          best = i;
        }
      }
      return least == ~uint64_t{0} ? kNoRecord : advance(best);
    }

   private:
    RecordNo advance(uint32_t list) {
      const RecordNo found = heads_[list];
      if (found == kNoRecord || !table_.valid(found)) return kNoRecord;
      heads_[list] = table_.record(found).next.load(std::memory_order_relaxed);
      return found;
    }

    const Table& table_;
    std::array<RecordNo, kPriorities> heads_;
    uint32_t used_ = 0;
  };

  RecordNo head() const { return Cursor(*this).next(); }

  // The first time behind all others; those that follow it are free too.
  uint64_t free_time() const {
    return std::max(segment_.meta().next_time.load(std::memory_order_relaxed), coarse_now_ns());
  }
  uint64_t next_seq(uint32_t priority) {
    const uint64_t time = free_time();
    segment_.meta().next_time.store(time + 1, std::memory_order_relaxed);
    return Position{time, priority}.pack();
  }

  // Behind all of its priority.
  Status push_waiting(RecordNo fresh) {
    RecordList& list = waiting(fresh);
    begin_waiting(list, fresh);
    return push_tail(list, fresh);
  }

  // By its `seq`. What comes back was mostly the oldest, and what has waited behind a claim is mostly
  // new: so from both ends at once. Bounded by the number of records, should the links be damaged.
  Status push_in_order(RecordNo fresh) {
    constexpr auto relaxed = std::memory_order_relaxed;
    RecordList& list = waiting(fresh);
    const uint64_t seq = table_.record(fresh).seq.load(relaxed);
    RecordNo prev = list.tail.load(relaxed), next = list.head.load(relaxed);
    for (uint64_t steps = 0; next != kNoRecord; ++steps) {
      if (!table_.valid(next) || !table_.valid(prev) || steps > table_.records_used()) {
        return Status::kCorrupt;
      }
      const Record &n = table_.record(next), &p = table_.record(prev);
      if (n.seq.load(relaxed) >= seq) {
        prev = n.prev.load(relaxed);
        break;
      }
      if (p.seq.load(relaxed) < seq) {
        next = p.next.load(relaxed);
        break;
      }
      next = n.next.load(relaxed);
      prev = p.prev.load(relaxed);
    }
    begin_waiting(list, fresh);
    count(list, 1);
    return link(list, prev, fresh, next);
  }

  // `fresh`, which has its `seq`, takes the place of `old` among the waiting.
  Status take_place(RecordNo fresh, RecordNo old) {
    const Record& o = table_.record(old);
    return link(waiting(old), o.prev.load(std::memory_order_relaxed), fresh,
                o.next.load(std::memory_order_relaxed));
  }

  Status unlink_waiting(RecordNo gone) {
    Meta& m = segment_.meta();
    RecordList& list = waiting(gone);
    const Status s = unlink(list, gone);
    m.waiting_count.store(m.waiting_count.load(std::memory_order_relaxed) - 1,
                          std::memory_order_release);
    if (list.count.load(std::memory_order_relaxed) == 0) {
      m.waiting_bitmap.store(m.waiting_bitmap.load(std::memory_order_relaxed) & ~bit_of(gone),
                             std::memory_order_relaxed);
    }
    return s;
  }

  void clear_waiting() {
    Meta& m = segment_.meta();
    for (RecordList& list : m.waiting) clear(list);
    m.waiting_count.store(0, std::memory_order_relaxed);
    m.waiting_bitmap.store(0, std::memory_order_relaxed);
  }

  Status push_tail(RecordList& list, RecordNo fresh) {
    count(list, 1);
    return link(list, list.tail.load(std::memory_order_relaxed), fresh, kNoRecord);
  }

  Status unlink(RecordList& list, RecordNo gone) {
    const Record& g = table_.record(gone);
    count(list, ~uint64_t{0});
    return join(list, g.prev.load(std::memory_order_relaxed),
                g.next.load(std::memory_order_relaxed));
  }

  static void clear(RecordList& list) {
    list.head.store(kNoRecord, std::memory_order_relaxed);
    list.tail.store(kNoRecord, std::memory_order_relaxed);
    list.count.store(0, std::memory_order_relaxed);
  }

 private:
  static void count(RecordList& list, uint64_t more) {
    list.count.store(list.count.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
  }

  uint32_t priority_of(RecordNo record) const {
    return Position::unpack(table_.record(record).seq.load(std::memory_order_relaxed)).priority;
  }
  RecordList& waiting(RecordNo record) const {
    return segment_.meta().waiting[priority_of(record)];
  }
  uint64_t bit_of(RecordNo record) const { return uint64_t{1} << priority_of(record); }

  // One more is going to be in `list`. Release: who sees the count without the lock, and takes it,
  // finds the item.
  void begin_waiting(const RecordList& list, RecordNo fresh) {
    Meta& m = segment_.meta();
    m.waiting_count.store(m.waiting_count.load(std::memory_order_relaxed) + 1,
                          std::memory_order_release);
    if (list.count.load(std::memory_order_relaxed) == 0) {
      m.waiting_bitmap.store(m.waiting_bitmap.load(std::memory_order_relaxed) | bit_of(fresh),
                             std::memory_order_relaxed);
    }
  }

  Status join(RecordList& list, RecordNo prev, RecordNo next) {
    if ((prev != kNoRecord && !table_.valid(prev)) || (next != kNoRecord && !table_.valid(next))) {
      return Status::kCorrupt;
    }
    (prev == kNoRecord ? list.head : table_.record(prev).next)
        .store(next, std::memory_order_relaxed);
    (next == kNoRecord ? list.tail : table_.record(next).prev)
        .store(prev, std::memory_order_relaxed);
    return Status::kOk;
  }

  Status link(RecordList& list, RecordNo prev, RecordNo fresh, RecordNo next) {
    Record& f = table_.record(fresh);
    f.prev.store(prev, std::memory_order_relaxed);
    f.next.store(next, std::memory_order_relaxed);
    if (Status s = join(list, prev, fresh); s != Status::kOk) return s;
    return join(list, fresh, next);
  }

  Segment& segment_;
  Table& table_;
};

}  // namespace shmcache
