// The order of a FIFO: a doubly linked list through the LIVE records, in ascending `seq` (I7), but
// for those whose key is in flight: they wait for the end of the claim (claims.cpp). Two lists more
// hold the records in flight and the dead letters (I12).
//
// Keyed: a key is in the queue at most once, because a record is. An update takes over the
// position (and `seq`) of the record it replaces; a delete unlinks, so there are no ghosts; a key
// added again gets a new `seq` and goes to the tail; one whose pop is undone has its old `seq`.
//
// A `seq` is the time of its queueing, in nanoseconds of CLOCK_MONOTONIC_COARSE, or one more than
// the last one given if that is later: a position first, and so also the age of an item. Where the
// clocks of two processes differ (time namespaces) the order holds and the age is off.
//
// All of it is derived: repair sorts the LIVE records by `seq` and links them anew. So the order of the
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

  RecordList& waiting() const { return segment_.meta().waiting; }
  RecordList& in_flight() const { return segment_.meta().in_flight; }
  RecordList& dead() const { return segment_.meta().dead; }

  RecordNo head() const { return waiting().head.load(std::memory_order_relaxed); }

  // The first position behind all others; those that follow it are free too.
  uint64_t free_seq() const {
    return std::max(segment_.meta().next_seq.load(std::memory_order_relaxed), coarse_now_ns());
  }
  uint64_t next_seq() {
    const uint64_t seq = free_seq();
    segment_.meta().next_seq.store(seq + 1, std::memory_order_relaxed);
    return seq;
  }

  Status push_tail(RecordList& list, RecordNo fresh) {
    count(list, 1);
    return link(list, list.tail.load(std::memory_order_relaxed), fresh, kNoRecord);
  }

  // Among the waiting by its `seq`, which is mostly that of the oldest: so from the head on. Bounded
  // by the number of records, should the links be damaged.
  Status push_in_order(RecordNo fresh) {
    const uint64_t seq = table_.record(fresh).seq.load(std::memory_order_relaxed);
    RecordNo prev = kNoRecord, next = head();
    for (uint64_t steps = 0; next != kNoRecord; ++steps) {
      if (!table_.valid(next) || steps > table_.records_used()) return Status::kCorrupt;
      if (table_.record(next).seq.load(std::memory_order_relaxed) > seq) break;
      prev = next;
      next = table_.record(next).next.load(std::memory_order_relaxed);
    }
    count(waiting(), 1);
    return link(waiting(), prev, fresh, next);
  }

  // `fresh` takes the place of `old` among the waiting.
  Status take_place(RecordNo fresh, RecordNo old) {
    const Record& o = table_.record(old);
    return link(waiting(), o.prev.load(std::memory_order_relaxed), fresh,
                o.next.load(std::memory_order_relaxed));
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
    list.count.store(list.count.load(std::memory_order_relaxed) + more, std::memory_order_release);
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
