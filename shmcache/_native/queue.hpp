// The order of a FIFO: a doubly linked list through the LIVE records, in ascending `seq` (I7).
//
// Keyed: a key is in the queue at most once, because a record is. An update takes over the
// position (and `seq`) of the record it replaces; a delete unlinks, so there are no ghosts; a key
// added again gets a new `seq` and goes to the tail; one whose pop is undone has its old `seq`.
//
// A `seq` is the time of its queueing, in nanoseconds of CLOCK_MONOTONIC_COARSE, or one more than
// the last one given if that is later: a position first, and so also the age of an item. Where the
// clocks of two processes differ (time namespaces) the order holds and the age is off.
//
// Derived: repair sorts the LIVE records by `seq` and links them anew. So the order of the
// stores below does not matter, only that they are bounded and checked.
// REQUIRES, everywhere: the lock is held for writing.
#pragma once

#include <algorithm>

#include "futex.hpp"
#include "layout.hpp"
#include "segment.hpp"
#include "status.hpp"
#include "table.hpp"

namespace shmcache {

class Queue {
 public:
  Queue(Segment& segment, Table& table) : segment_(segment), table_(table) {}

  RecordNo head() const { return segment_.meta().queue_head.load(std::memory_order_relaxed); }

  // The first position behind all others; those that follow it are free too.
  uint64_t free_seq() const {
    return std::max(segment_.meta().next_seq.load(std::memory_order_relaxed), coarse_now_ns());
  }
  uint64_t next_seq() {
    const uint64_t seq = free_seq();
    segment_.meta().next_seq.store(seq + 1, std::memory_order_relaxed);
    return seq;
  }

  Status push_tail(RecordNo fresh) {
    Meta& m = segment_.meta();
    const RecordNo tail = m.queue_tail.load(std::memory_order_relaxed);
    return link(tail, fresh, kNoRecord);
  }

  // By its `seq`, which is mostly that of the oldest: so from the head on. Bounded by the number of
  // records, should the links be damaged.
  Status push_in_order(RecordNo fresh) {
    const uint64_t seq = table_.record(fresh).seq.load(std::memory_order_relaxed);
    RecordNo prev = kNoRecord, next = head();
    for (uint64_t steps = 0; next != kNoRecord; ++steps) {
      if (!table_.valid(next) || steps > table_.records_used()) return Status::kCorrupt;
      if (table_.record(next).seq.load(std::memory_order_relaxed) > seq) break;
      prev = next;
      next = table_.record(next).next.load(std::memory_order_relaxed);
    }
    return link(prev, fresh, next);
  }

  // `fresh` takes the place of `old`.
  Status take_place(RecordNo fresh, RecordNo old) {
    const Record& o = table_.record(old);
    return link(o.prev.load(std::memory_order_relaxed), fresh,
                o.next.load(std::memory_order_relaxed));
  }

  Status unlink(RecordNo gone) {
    const Record& g = table_.record(gone);
    return join(g.prev.load(std::memory_order_relaxed), g.next.load(std::memory_order_relaxed));
  }

  void clear() {
    segment_.meta().queue_head.store(kNoRecord, std::memory_order_relaxed);
    segment_.meta().queue_tail.store(kNoRecord, std::memory_order_relaxed);
  }

 private:
  Status join(RecordNo prev, RecordNo next) {
    Meta& m = segment_.meta();
    if ((prev != kNoRecord && !table_.valid(prev)) || (next != kNoRecord && !table_.valid(next))) {
      return Status::kCorrupt;
    }
    (prev == kNoRecord ? m.queue_head : table_.record(prev).next)
        .store(next, std::memory_order_relaxed);
    (next == kNoRecord ? m.queue_tail : table_.record(next).prev)
        .store(prev, std::memory_order_relaxed);
    return Status::kOk;
  }

  Status link(RecordNo prev, RecordNo fresh, RecordNo next) {
    Record& f = table_.record(fresh);
    f.prev.store(prev, std::memory_order_relaxed);
    f.next.store(next, std::memory_order_relaxed);
    if (Status s = join(prev, fresh); s != Status::kOk) return s;
    return join(fresh, next);
  }

  Segment& segment_;
  Table& table_;
};

}  // namespace shmcache
