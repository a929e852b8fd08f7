// Claims: items that a consumer holds while it works on them, and gives back by dying.
//
// A claim is a pop that keeps the record: HELD instead of FREE, in the list of those in flight, with
// a ticket that says whose it is. No reader finds a HELD record. Its end is one of three:
//   done      the record is erased, as a pop would have
//   failed    it is LIVE again at its old place, one failure more in its ticket; or, after
//             max_attempts of them, a dead letter: HELD still, `txn` = kDeadLetter
//   released  as failed, and not counted
// A claim whose owner the kernel calls dead, or whose lease has run out, has failed. Whoever pops or
// claims looks for such ones, every kReapNs at most, and who waits for an item wakes up as often.
//
// No key is handled twice at a time: while it is in flight, a newer version of it is LIVE, so every
// reader sees it, and not queued ("behind" the claim). The end of the claim queues it: after `done`
// at its own place, after a failure at the place, and with the failures, of what failed, which it
// replaces. What was deleted meanwhile (`cancelled`, or a replace since) does not come back.
//
// Crashes: each operation moves the truth by one store (layout.hpp); lists and counts are derived.
// A failure that is interrupted before that store is found again, as the same claim, by the next one
// that looks, and counted once (Ticket::failures). In a work queue a failure may also end in a pause:
// the record in flight is then parked (Arena::retry_claim).
#include <algorithm>
#include <new>
#include <utility>

#include "arena.hpp"
#include "futex.hpp"
#include "guard.hpp"

namespace shmcache {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release = std::memory_order_release;

constexpr uint64_t kReapNs = 50'000'000;

}  // namespace

// The record of `key` that is in flight, or kNoRecord.
Status Arena::in_flight(const Key& key, RecordNo& record) const {
  record = kNoRecord;
  if (segment_->meta().in_flight.count.load(relaxed) == 0) return Status::kOk;
  return table_.locate_held(key, Table::Sought::kInFlight, record);
}

template <typename Each>
Status Arena::each_of(const RecordList& list, Each&& each) const {
  uint64_t steps = 0;
  for (RecordNo record = list.head.load(relaxed); record != kNoRecord;) {
    if (!table_.valid(record) || ++steps > table_.records_used()) return Status::kCorrupt;
    const RecordNo next = table_.record(record).next.load(relaxed);  // `each` may unlink it
    if (Status s = each(record); s != Status::kOk) return s;
    record = next;
  }
  return Status::kOk;
}

// Without the lock, so that pollers do not disturb producers: kEmpty if a pop would find nothing.
// Unless DIRTY: then a producer is at work, or died with an item published and not yet counted.
Status Arena::worth_taking() const {
  const Meta& m = segment_->meta();
  if (closed()) return Status::kClosed;
  if (!segment_->writable()) return Status::kReadOnly;
  const bool nothing = m.waiting_count.load(acquire) == 0 && m.shut_down.load(acquire) == 0 &&
                       (segment_->control().lock.load(acquire) & kLockDirty) == 0 &&
                       !is_due();
  return nothing ? Status::kEmpty : Status::kOk;
}

// With what time has brought. kEmpty, kShutDown: there is nothing.
Status Arena::something_waiting() {
  if (Status s = reap_if_due(); s != Status::kOk) return s;
  return waiting() != 0 ? Status::kOk : nothing_left();
}

bool Arena::reap_is_due() const {
  const Meta& m = segment_->meta();
  return m.in_flight.count.load(relaxed) != 0 &&
         coarse_now_ns() >= m.next_reap_ns.load(relaxed);
}

// What time has brought: fail the claims of the dead, and those whose lease is over; and parked keys
// that are due.
Status Arena::reap_if_due() try {
  bool begun = false;
  if (timer_is_due()) {
    if (Status s = wake_timers(begun); s != Status::kOk) return s;
  }
  if (reap_is_due()) {
    if (Status s = reap(begun); s != Status::kOk) return s;
  }
  if (begun) {
    table_.end_mutation();
    notify_change();
  }
  return Status::kOk;
} catch (const std::bad_alloc&) {
  return Status::kNoMemory;
}

Status Arena::look(uint64_t deadline) {
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  const Status s = guard.end(reap_if_due());
  guard.leave();
  if (s == Status::kOk && waiting() != 0) notify_ready();
  return s;
}

Status Arena::reap(bool& begun) {
  Meta& m = segment_->meta();
  const uint64_t now = now_ns();
  uint64_t next = now + kReapNs;
  uint32_t asked = 0;
  bool alive = false;
  // The last first: each of many then finds its old place at the head of the queue.
  uint64_t steps = 0;
  for (RecordNo record = m.in_flight.tail.load(relaxed), prev; record != kNoRecord; record = prev) {
    if (!table_.valid(record) || ++steps > table_.records_used()) return Status::kCorrupt;
    prev = table_.record(record).prev.load(relaxed);
    const Ticket* ticket = table_.ticket(record);
    if (ticket == nullptr) return Status::kCorrupt;
    const auto owner = static_cast<uint32_t>(ticket->owner.load(relaxed));
    const uint64_t deadline = ticket->deadline_ns.load(relaxed);
    if (owner != asked) {  // mostly that of the one before
      asked = owner;
      alive = segment_->owner_alive(owner);
    }
    if (alive && (deadline == 0 || now < deadline)) {
      if (deadline != 0) next = std::min(next, deadline);
      continue;
    }
    if (!std::exchange(begun, true)) table_.begin_mutation();
    if (Status s = fail_locked(record, true); s != Status::kOk) return s;
  }
  m.next_reap_ns.store(next, relaxed);
  return Status::kOk;
}

// By a delete of the key, or a replace, since the claim was given. By the rule of settle_replace, so
// that it is right after a crash too.
bool Arena::is_cancelled(const Ticket& ticket) const {
  const Meta& m = segment_->meta();
  const uint64_t count = m.resource_versions.load(acquire);
  const uint64_t replaced = next_is_current(count)
                                ? m.resource_version[(count + 1) & 1].claims.load(relaxed)
                                : m.replaced_claims.load(relaxed);
  return ticket.cancelled.load(relaxed) != 0 || ticket.claim.load(relaxed) <= replaced;
}

// One failure more in the ticket of what is in flight; once for a claim.
Status Arena::count_claim(RecordNo held, RecordNo newer, RecordNo parked) {
  Ticket* ticket = table_.ticket(held);
  if (ticket == nullptr) return Status::kCorrupt;
  const uint64_t claim = ticket->claim.load(relaxed);
  if (ticket->failures.load(relaxed) >> 16 == (claim & ~uint64_t{0} >> 16)) return Status::kOk;
  for (RecordNo other : {newer, parked}) {  // in a work queue they count too
    if (other == kNoRecord) continue;
    if (Status s = bequeath(other, held); s != Status::kOk) return s;
  }
  const uint64_t count = ticket->failures.load(relaxed) & kFailuresMask;
  ticket->failures.store(claim << 16 | std::min(count + 1, kFailuresMask), relaxed);
  return Status::kOk;
}

// `counted`: as a failure.
Status Arena::fail_locked(RecordNo held, bool counted) {
  Ticket* ticket = table_.ticket(held);
  if (ticket == nullptr) return Status::kCorrupt;
  RecordNo newer, parked;
  if (Status s = table_.locate_like(held, Table::Sought::kLive, newer); s != Status::kOk) return s;
  if (Status s = table_.locate_like(held, Table::Sought::kParked, parked); s != Status::kOk) return s;
  if (counted) {
    if (Status s = count_claim(held, newer, parked); s != Status::kOk) return s;
  }
  const uint64_t most = segment_->header().max_attempts;
  const bool spent =
      counted && most != 0 && (ticket->failures.load(relaxed) & kFailuresMask) >= most;
  const bool cancelled = is_cancelled(*ticket);
  if (Status s = queue_.unlink(queue_.in_flight(), held); s != Status::kOk) return s;
  if (newer != kNoRecord) {
    Ticket* its = table_.ticket(newer);
    if (its == nullptr) return Status::kCorrupt;
    if (!cancelled) {
      const Position had = Position::unpack(table_.record(held).seq.load(relaxed));
      Record& n = table_.record(newer);  // of its own priority
      n.seq.store(Position{had.time, Position::unpack(n.seq.load(relaxed)).priority}.pack(),
                  relaxed);
      if (spent) its->failures.store(0, relaxed);  // what is new deserves to be tried
      if (Status s = spent ? Status::kOk : bequeath(held, newer); s != Status::kOk) return s;
    }
    if (Status s = table_.erase(held); s != Status::kOk) return s;
    return queue_.push_in_order(newer);
  }
  if (cancelled) return table_.erase(held);
  if (spent) {
    RecordNo older;
    if (Status s = table_.locate_like(held, Table::Sought::kDead, older); s != Status::kOk) return s;
    if (older != kNoRecord) {  // one of a key: its version is the older one
      if (Status s = erase_dead(older); s != Status::kOk) return s;
    }
    ticket->since_ns.store(now_ns(), relaxed);
    table_.record(held).txn.store(kDeadLetter, release);
    (void)table_.next_version();
    return queue_.push_tail(queue_.dead(), held);
  }
  table_.unhold(held);
  return queue_.push_in_order(held);
}

Status Arena::erase_dead(RecordNo record) {
  if (Status s = queue_.unlink(queue_.dead(), record); s != Status::kOk) return s;
  return table_.erase(record);
}

// After a replace: the new versions of what is in flight are not to be queued.
Status Arena::mark_behind() {
  return each_of(queue_.in_flight(), [&](RecordNo record) {
    RecordNo newer;
    const Status s = table_.locate_like(record, Table::Sought::kLive, newer);
    if (s == Status::kOk && newer != kNoRecord) {
      table_.record(newer).next.store(kBehindAClaim, relaxed);
    }
    return s;
  });
}

// Nothing that is in flight comes back, and what waits behind it is gone.
Status Arena::cancel_claims() {
  return each_of(queue_.in_flight(), [&](RecordNo record) {
    RecordNo newer;
    const Status s = table_.locate_like(record, Table::Sought::kLive, newer);
    if (s != Status::kOk) return s;
    Ticket* ticket = table_.ticket(record);
    if (ticket == nullptr) return Status::kCorrupt;
    ticket->cancelled.store(1, relaxed);  // first: as in Arena::erase
    if (newer == kNoRecord) return s;
    add_to(segment_->meta().deletes, 1);
    return erase_locked(newer, false);
  });
}

// What a consumer is told who finds the queue empty. After a shutdown one still waits for what others
// have in flight, since that may come back, or have a newer version behind it; not for what this
// handle has, whose end is up to it.
Status Arena::nothing_left() const {
  if (segment_->meta().shut_down.load(relaxed) == 0) return Status::kEmpty;
  bool others = false;
  const Status s = each_of(queue_.in_flight(), [&](RecordNo record) {
    const Ticket* ticket = table_.ticket(record);
    if (ticket == nullptr) return Status::kCorrupt;
    RecordNo newer;
    const Status located = table_.locate_like(record, Table::Sought::kLive, newer);
    others = others || (ticket->owner.load(relaxed) != segment_->owner_id() &&
                        (newer != kNoRecord || !is_cancelled(*ticket)));
    return located;
  });
  return s != Status::kOk ? s : others ? Status::kEmpty : Status::kShutDown;
}

Status Arena::try_claim(uint64_t lease_ns, uint64_t deadline, Item& item, Claim& claim) {
  Meta& m = segment_->meta();
  if (Status s = worth_taking(); s != Status::kOk) return s;
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (Status s = something_waiting(); s != Status::kOk) return guard.end(s);
  const RecordNo head = queue_.head();
  Hit hit;
  if (head == kNoRecord || table_.peek(head, hit) != Status::kOk) {
    return guard.end(Status::kCorrupt);
  }
  Ticket* ticket = table_.ticket(head);
  if (ticket == nullptr) return guard.end(Status::kCorrupt);
  // A copy first: an item leaves the queue only when its consumer has it.
  if (Status s = copy_record(hit, true, item); s != Status::kOk) return guard.end(s);
  const uint64_t now = now_ns(), until = lease_ns == 0 ? 0 : now + lease_ns;
  const uint64_t number = m.claims.load(relaxed) + 1;
  table_.begin_mutation();
  m.claims.store(number, relaxed);
  ticket->claim.store(number, relaxed);
  ticket->owner.store(segment_->owner_id(), relaxed);
  ticket->deadline_ns.store(until, relaxed);
  ticket->cancelled.store(0, relaxed);
  ticket->since_ns.store(now, relaxed);
  table_.hold(head);  // the truth moves
  if (Status s = queue_.unlink_waiting(head); s != Status::kOk) return guard.end(s);
  if (Status s = queue_.push_tail(queue_.in_flight(), head); s != Status::kOk) return guard.end(s);
  const uint64_t look = until == 0 ? now + kReapNs : std::min(until, now + kReapNs);
  if (m.in_flight.count.load(relaxed) == 1 || look < m.next_reap_ns.load(relaxed)) {
    m.next_reap_ns.store(look, relaxed);
  }
  note_drained();
  table_.end_mutation();
  claim = {head, table_.record(head).state.load(relaxed), number,
           ticket->failures.load(relaxed) & kFailuresMask};
  const bool more = queue_.head() != kNoRecord;
  guard.leave();
  notify_change();
  if (more) notify_ready();  // the baton
  return Status::kOk;
}

// Whether the claim is what this handle was given: not ended, not taken away since, not another's.
bool Arena::holds(const Claim& claim) const {
  if (!table_.valid(claim.record)) return false;
  if (table_.record(claim.record).state.load(relaxed) != claim.state) return false;
  if (!table_.is(claim.record, Table::Sought::kInFlight)) return false;  // parked, a dead letter
  const Ticket* ticket = table_.ticket(claim.record);
  return ticket != nullptr && ticket->claim.load(relaxed) == claim.number &&
         ticket->owner.load(relaxed) == segment_->owner_id();
}

Status Arena::end_claim(const Claim& claim, End how, uint64_t deadline, bool& ours) {
  ours = false;
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (!holds(claim)) return Status::kOk;
  ours = true;
  table_.begin_mutation();
  if (how == End::kDone) {
    RecordNo newer;
    if (Status s = table_.locate_like(claim.record, Table::Sought::kLive, newer);
        s != Status::kOk) {
      return guard.end(s);
    }
    if (Status s = queue_.unlink(queue_.in_flight(), claim.record); s != Status::kOk) {
      return guard.end(s);
    }
    if (Status s = erase_done(claim.record, newer); s != Status::kOk) return guard.end(s);
    if (newer != kNoRecord) {
      if (Status s = queue_.push_in_order(newer); s != Status::kOk) return guard.end(s);
    }
    count_pops(1);
  } else if (Status s = fail_locked(claim.record, how == End::kFailed); s != Status::kOk) {
    return guard.end(s);
  }
  table_.end_mutation();
  const bool more = waiting() != 0;
  guard.leave();
  notify_change();
  if (more) notify_ready();
  return Status::kOk;
}

Status Arena::renew(const Claim& claim, uint64_t lease_ns, uint64_t deadline, bool& ours) {
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  ours = holds(claim);
  if (!ours) return Status::kOk;
  const uint64_t until = lease_ns == 0 ? 0 : now_ns() + lease_ns;
  table_.ticket(claim.record)->deadline_ns.store(until, relaxed);
  Meta& m = segment_->meta();
  if (until != 0 && until < m.next_reap_ns.load(relaxed)) m.next_reap_ns.store(until, relaxed);
  return Status::kOk;
}

// Of the claim that is held longest, 0 if there is none: without the lock, for people.
uint64_t Arena::oldest_claim_ns() const {
  const RecordNo head = segment_->meta().in_flight.head.load(relaxed);
  if (!table_.valid(head)) return 0;
  const std::atomic<uint64_t>& word = table_.record(head).state;
  const uint64_t state = word.load(acquire);
  const Ticket* ticket = state_of(state) == State::kHeld ? table_.ticket(head) : nullptr;
  if (ticket == nullptr) return 0;
  const uint64_t since = ticket->since_ns.load(relaxed);
  std::atomic_thread_fence(acquire);
  return word.load(relaxed) == state ? since : 0;
}

Status Arena::held(Table::Sought sought, bool with_values, uint64_t deadline,
                   std::vector<Held>& found) {
  found.clear();
  Guard guard(*this, segment_->writable() ? Hold::kWrite : Hold::kRead, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (segment_->writable()) {
    if (Status s = reap_if_due(); s != Status::kOk) return guard.end(s);
  }
  // By the records and not by the list: so it is right after a crash too, for a handle that may not
  // repair.
  try {
    for (uint64_t i = 0, n = segment_->meta().held.load(relaxed) == 0 && !guard.dirty()
                                 ? 0
                                 : table_.records_used();
         i < n; ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      Hit hit;
      if (!table_.is(number, sought)) continue;
      const Ticket* ticket = table_.ticket(number);
      if (ticket == nullptr || table_.peek(number, hit) != Status::kOk) return Status::kCorrupt;
      const bool parked = sought == Table::Sought::kParked;
      if (parked && ticket->deadline_ns.load(relaxed) == 0) continue;  // it only counts failures
      Held one;
      if (Status s = copy_record(hit, with_values, one.item); s != Status::kOk) return s;
      one.item.seq = table_.record(number).seq.load(relaxed);
      one.claim = parked ? 0 : ticket->claim.load(relaxed);
      one.failures = failures_like(number);
      one.deadline_ns = ticket->deadline_ns.load(relaxed);
      one.since_ns = ticket->since_ns.load(relaxed);
      one.pid = segment_->owner_pid(static_cast<uint32_t>(ticket->owner.load(relaxed)));
      found.push_back(std::move(one));
    }
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  }
  std::sort(found.begin(), found.end(), [](const Held& a, const Held& b) {
    return a.claim != b.claim ? a.claim < b.claim : a.deadline_ns < b.deadline_ns;
  });
  return Status::kOk;
}

// A dead letter goes back to the tail, its failures forgotten, or (`drop`) away. A key of a work
// queue is added by it, with what that means: nothing after a shutdown, and where somebody has the
// key, it is queued behind that.
Status Arena::settle_dead(std::string_view key_text, bool drop, uint64_t deadline,
                          bool& was_there) {
  was_there = false;
  if (!key_size_ok(key_text)) return Status::kKeySize;
  const Key key = table_.key(key_text.data(), key_text.size());
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  RecordNo record, claimed;
  if (Status s = table_.locate_held(key, Table::Sought::kDead, record); s != Status::kOk) {
    return guard.end(s);
  }
  if (record == kNoRecord) return Status::kOk;
  const bool is_added = !drop && segment_->kind() == Kind::kWorkQueue;
  if (is_added && segment_->meta().shut_down.load(relaxed) != 0) return Status::kOk;
  was_there = true;
  Table::Place place;
  if (Status s = table_.locate(key, place); s != Status::kOk) return guard.end(s);
  if (Status s = in_flight(key, claimed); s != Status::kOk) return guard.end(s);
  table_.begin_mutation();
  const bool is_claimed = claimed != kNoRecord;
  // A newer version of it is on its way already.
  if (drop || place.record != kNoRecord || (is_claimed && !is_added)) {
    if (Status s = erase_dead(record); s != Status::kOk) return guard.end(s);
  } else {
    Record& r = table_.record(record);
    Ticket* ticket = table_.ticket(record);
    if (ticket == nullptr) return guard.end(Status::kCorrupt);
    r.seq.store(queue_.next_seq(Position::unpack(r.seq.load(relaxed)).priority), relaxed);
    ticket->failures.store(0, relaxed);
    if (Status s = queue_.unlink(queue_.dead(), record); s != Status::kOk) return guard.end(s);
    table_.unhold(record);  // the truth moves
    r.txn.store(0, relaxed);
    if (is_claimed) {
      r.next.store(kBehindAClaim, relaxed);
    } else if (Status s = queue_.push_waiting(record); s != Status::kOk) {
      return guard.end(s);
    }
  }
  table_.end_mutation();
  guard.leave();
  notify_change();
  notify_ready();
  return Status::kOk;
}

}  // namespace shmcache
