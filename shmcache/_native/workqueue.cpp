// A work queue: a FIFO of keys without payloads, whose consumers hold what they take by claims
// (claims.cpp). With client-go's words (util/workqueue): a key that is LIVE is dirty, one in flight
// is being processed. Beyond that a key may be *parked*: HELD with `txn` kParkedKey, until its due
// time (timers.hpp), or, without one, only to remember how often it has failed.
//
// So a key has up to three records: LIVE, in flight, parked. How often it has failed is the largest
// number in their tickets: who adds to it writes into one of them, who drops one hands its number on
// first, and to forget is to write 0 into all, the largest last. Each is old or new after a crash.
//
// Whoever takes a key looks for parked ones that are due, and makes them LIVE; a sleeping consumer
// wakes up for the first of them (Arena::wait_ready). There is no timer thread. After a shutdown
// nothing comes due.
#include <algorithm>
#include <array>
#include <new>

#include "arena.hpp"
#include "futex.hpp"
#include "guard.hpp"

namespace shmcache {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto release = std::memory_order_release;

constexpr Bytes kNothing{"", 0};

uint64_t count_of(const Ticket& ticket) { return ticket.failures.load(relaxed) & kFailuresMask; }

// The claim that counted last stays (Ticket::failures).
void set_count(Ticket& ticket, uint64_t count) {
  const uint64_t claim = ticket.failures.load(relaxed) & ~kFailuresMask;
  ticket.failures.store(claim | std::min(count, kFailuresMask), relaxed);
}

}  // namespace

bool Arena::timer_is_due() const {
  const Meta& m = segment_->meta();
  const uint64_t next = m.next_due_ns.load(relaxed);
  return next != Timers::kNever && now_ns() >= next && m.shut_down.load(relaxed) == 0;
}

Status Arena::family(const Key& key, Family& found) const {
  Table::Place place;
  if (Status s = table_.locate(key, place); s != Status::kOk) return s;
  RecordNo claimed, parked;
  if (Status s = in_flight(key, claimed); s != Status::kOk) return s;
  if (Status s = table_.locate_held(key, Table::Sought::kParked, parked); s != Status::kOk) return s;
  found = {place.record, claimed, parked};
  return Status::kOk;
}

// The tickets of a family, those with the fewest failures first; null for who is not there.
Status Arena::tickets(const Family& family, std::array<Ticket*, 3>& found) const {
  size_t at = 0;
  for (RecordNo record : {family.live, family.in_flight, family.parked}) {
    found[at++] = record == kNoRecord ? nullptr : table_.ticket(record);
    if (record != kNoRecord && found[at - 1] == nullptr) return Status::kCorrupt;
  }
  std::sort(found.begin(), found.end(), [](const Ticket* a, const Ticket* b) {
    return (a == nullptr ? 0 : count_of(*a) + 1) < (b == nullptr ? 0 : count_of(*b) + 1);
  });
  return Status::kOk;
}

Status Arena::failures_locked(const Family& family, uint64_t& count) const {
  std::array<Ticket*, 3> all;
  const Status s = tickets(family, all);
  count = s != Status::kOk || all[2] == nullptr ? 0 : count_of(*all[2]);
  return s;
}

// How often the key of a record has failed: of a dead letter its own count, which is settled. For
// people: where a crash has left an index that cannot be followed, what the record itself says.
uint64_t Arena::failures_like(RecordNo record) const {
  const Ticket* own = table_.ticket(record);
  uint64_t most = own == nullptr ? 0 : count_of(*own);
  if (table_.is(record, Table::Sought::kDead)) return most;
  for (auto sought : {Table::Sought::kLive, Table::Sought::kInFlight, Table::Sought::kParked}) {
    RecordNo other = kNoRecord;
    if (table_.locate_like(record, sought, other) != Status::kOk || other == kNoRecord) continue;
    if (const Ticket* its = table_.ticket(other)) most = std::max(most, count_of(*its));
  }
  return most;
}

// What `gone` counted, `heir` counts from now on.
Status Arena::bequeath(RecordNo gone, RecordNo heir) {
  const Ticket* old = table_.ticket(gone);
  Ticket* its = table_.ticket(heir);
  if (old == nullptr || its == nullptr) return Status::kCorrupt;
  if (count_of(*its) < count_of(*old)) set_count(*its, count_of(*old));
  return Status::kOk;
}

// The end of `done`, of what is in no list any more. How often the key has failed stays known.
Status Arena::erase_done(RecordNo record, RecordNo newer) {
  const Ticket* ticket = table_.ticket(record);
  if (ticket == nullptr) return Status::kCorrupt;
  if (segment_->kind() != Kind::kWorkQueue || count_of(*ticket) == 0) return table_.erase(record);
  RecordNo heir = newer;
  if (heir == kNoRecord) {
    const Status s = table_.locate_like(record, Table::Sought::kParked, heir);
    if (s != Status::kOk) return s;
  }
  if (heir == kNoRecord) return park(record, 0);
  if (Status s = bequeath(record, heir); s != Status::kOk) return s;
  return table_.erase(record);
}

// The end of a claim that has failed, and is to be tried again in `delay_ns`: what was in flight is
// parked until then, or goes to the tail. So this asks for no memory and cannot fail for want of it.
// After a shutdown it is done: to try again would be to add.
Status Arena::retry_claim(const Claim& claim, uint64_t delay_ns, uint64_t deadline, bool& ours) {
  ours = false;
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (!holds(claim)) return Status::kOk;
  ours = true;
  Meta& m = segment_->meta();
  const uint64_t sooner = m.next_due_ns.load(relaxed);
  table_.begin_mutation();
  const uint64_t due = delay_ns == 0 ? 0 : now_ns() + delay_ns;
  if (Status s = retry_locked(claim.record, due); s != Status::kOk) return guard.end(s);
  count_pops(1);
  table_.end_mutation();
  const bool wake = waiting() != 0 || m.next_due_ns.load(relaxed) < sooner;
  guard.leave();
  notify_change();
  if (wake) notify_ready();
  return Status::kOk;
}

// `due` is 0 for now.
Status Arena::retry_locked(RecordNo held, uint64_t due) {
  RecordNo newer, parked;
  if (Status s = table_.locate_like(held, Table::Sought::kLive, newer); s != Status::kOk) return s;
  if (Status s = table_.locate_like(held, Table::Sought::kParked, parked); s != Status::kOk) return s;
  if (Status s = count_claim(held, newer, parked); s != Status::kOk) return s;
  if (Status s = queue_.unlink(queue_.in_flight(), held); s != Status::kOk) return s;
  Record& r = table_.record(held);
  const uint32_t priority = Position::unpack(r.seq.load(relaxed)).priority;
  Status done;
  if (segment_->meta().shut_down.load(relaxed) != 0 || (due == 0 && newer != kNoRecord)) {
    done = erase_done(held, newer);
  } else if (due == 0) {
    r.seq.store(queue_.next_seq(priority), relaxed);
    table_.unhold(held);  // the truth moves
    return queue_.push_waiting(held);
  } else if (parked == kNoRecord) {
    done = park(held, due);
  } else {
    done = bequeath(held, parked);  // and so there are tickets
    const uint64_t known =
        done == Status::kOk ? table_.ticket(parked)->deadline_ns.load(relaxed) : due;
    if (done == Status::kOk && (known == 0 || due < known)) done = put_off(parked, priority, due);
    if (done == Status::kOk) done = table_.erase(held);
  }
  if (done != Status::kOk || newer == kNoRecord) return done;
  return queue_.push_in_order(newer);
}

// From in flight to parked, until `due`; without a due time if that is 0.
Status Arena::park(RecordNo record, uint64_t due) {
  Ticket* ticket = table_.ticket(record);
  if (ticket == nullptr) return Status::kCorrupt;
  ticket->deadline_ns.store(due, relaxed);
  table_.record(record).txn.store(kParkedKey, release);  // the truth moves
  (void)table_.next_version();
  return due == 0 ? Status::kOk : timers_.add(record);
}

// What is parked gets another due time, or its first.
Status Arena::put_off(RecordNo parked, uint32_t priority, uint64_t due) {
  Ticket* ticket = table_.ticket(parked);
  if (ticket == nullptr) return Status::kCorrupt;
  if (ticket->deadline_ns.load(relaxed) != 0) {
    if (Status s = timers_.remove(parked); s != Status::kOk) return s;
  }
  table_.record(parked).seq.store(Position{0, priority}.pack(), relaxed);
  ticket->deadline_ns.store(due, relaxed);
  (void)table_.next_version();
  return timers_.add(parked);
}

// A new parked record of `key`. REQUIRES: room in the index, and a mutation has begun.
Status Arena::publish_parked(RecordNo fresh, uint32_t priority, uint64_t due_ns,
                             uint64_t failures) {
  Ticket* ticket = table_.ticket(fresh);
  if (ticket == nullptr) return Status::kCorrupt;
  table_.record(fresh).seq.store(Position{0, priority}.pack(), relaxed);
  ticket->failures.store(failures, relaxed);
  ticket->deadline_ns.store(due_ns, relaxed);
  for (auto* word : {&ticket->claim, &ticket->owner, &ticket->cancelled, &ticket->since_ns}) {
    word->store(0, relaxed);
  }
  if (Status s = table_.publish_held(fresh, kParkedKey); s != Status::kOk) return s;
  return due_ns == 0 ? Status::kOk : timers_.add(fresh);
}

// A parked record, in no list of timers any more, becomes dirty, unless its key is so already.
Status Arena::unpark(RecordNo record, uint32_t priority) {
  RecordNo live, claimed;
  if (Status s = table_.locate_like(record, Table::Sought::kLive, live); s != Status::kOk) return s;
  if (live != kNoRecord) {
    if (Status s = raise(live, priority); s != Status::kOk) return s;
    if (Status s = bequeath(record, live); s != Status::kOk) return s;
    return table_.erase(record);
  }
  const Status s = table_.locate_like(record, Table::Sought::kInFlight, claimed);
  if (s != Status::kOk) return s;
  Record& r = table_.record(record);
  r.seq.store(queue_.next_seq(priority), relaxed);
  table_.unhold(record);  // the truth moves
  r.txn.store(0, relaxed);
  if (claimed == kNoRecord) return queue_.push_waiting(record);
  r.next.store(kBehindAClaim, relaxed);
  return Status::kOk;
}

// What is dirty already gets the more urgent of the two priorities, and was queued when it was.
Status Arena::raise(RecordNo live, uint32_t priority) {
  Record& r = table_.record(live);
  const Position had = Position::unpack(r.seq.load(relaxed));
  if (had.priority >= priority) return Status::kOk;
  const bool queued = r.next.load(relaxed) != kBehindAClaim;
  if (queued) {
    if (Status s = queue_.unlink_waiting(live); s != Status::kOk) return s;
  }
  r.seq.store(Position{had.time, priority}.pack(), relaxed);
  return queued ? queue_.push_in_order(live) : Status::kOk;
}

// Throws std::bad_alloc, and then nothing has happened.
Status Arena::wake_timers(bool& begun) {
  std::vector<RecordNo> due;
  if (Status s = timers_.take_due(now_ns(), due); s != Status::kOk) return s;
  if (due.empty()) return Status::kOk;
  table_.begin_mutation();
  begun = true;
  for (RecordNo record : due) {
    const uint64_t seq = table_.record(record).seq.load(relaxed);
    if (Status s = unpark(record, Position::unpack(seq).priority); s != Status::kOk) return s;
  }
  return Status::kOk;
}

Status Arena::enqueue(std::string_view key_text, uint32_t priority, uint64_t delay_ns,
                      uint64_t deadline, bool& open) {
  open = false;
  if (!key_size_ok(key_text)) return Status::kKeySize;
  const Key key = table_.key(key_text.data(), key_text.size());
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (segment_->meta().shut_down.load(relaxed) != 0) return Status::kOk;
  open = true;
  const uint64_t sooner = segment_->meta().next_due_ns.load(relaxed);
  bool changed = false;
  const Status s = delay_ns == 0 ? add_locked(key, priority, changed)
                                 : delay_locked(key, priority, delay_ns, changed);
  if (s != Status::kOk || !changed) return guard.end(s);
  // A sleeper has to sleep shorter: one will do, it is the one that is woken for the item.
  const bool wake = delay_ns == 0 || segment_->meta().next_due_ns.load(relaxed) < sooner;
  guard.leave();
  notify_change();
  if (wake) notify_ready();
  return Status::kOk;
}

Status Arena::add_locked(const Key& key, uint32_t priority, bool& changed) {
  Family known;
  if (Status s = family(key, known); s != Status::kOk) return s;
  if (known.live != kNoRecord) return raise(known.live, priority);  // dirty already
  if (known.parked != kNoRecord) {
    const Ticket* ticket = table_.ticket(known.parked);
    if (ticket == nullptr) return Status::kCorrupt;
    if (ticket->deadline_ns.load(relaxed) == 0) {
      table_.begin_mutation();
      if (Status s = unpark(known.parked, priority); s != Status::kOk) return s;
      table_.end_mutation();
      changed = true;
      return Status::kOk;
    }
  }
  if (Status s = table_.reserve_index(1); s != Status::kOk) return s;
  Table::Place place;
  if (Status s = table_.locate(key, place); s != Status::kOk) return s;
  RecordNo fresh;
  if (Status s = prepare(key, {{}, kNothing}, fresh); s != Status::kOk) return s;
  table_.begin_mutation();
  const Status s = upsert_locked(key, fresh, place, priority, kAtTheTail);
  if (s != Status::kOk) return s;
  table_.end_mutation();
  changed = true;
  return Status::kOk;
}

Status Arena::delay_locked(const Key& key, uint32_t priority, uint64_t delay_ns, bool& changed) {
  const uint64_t due = now_ns() + delay_ns;
  RecordNo parked;
  const Status located = table_.locate_held(key, Table::Sought::kParked, parked);
  if (located != Status::kOk) return located;
  if (parked != kNoRecord) {
    const Ticket* ticket = table_.ticket(parked);
    if (ticket == nullptr) return Status::kCorrupt;
    const uint64_t known = ticket->deadline_ns.load(relaxed);
    if (known != 0 && known <= due) return Status::kOk;  // the earlier time stands
    table_.begin_mutation();
    if (Status s = put_off(parked, priority, due); s != Status::kOk) return s;
  } else {
    RecordNo fresh;
    if (Status s = table_.reserve_index(1); s != Status::kOk) return s;
    if (Status s = prepare(key, {{}, kNothing}, fresh); s != Status::kOk) return s;
    table_.begin_mutation();
    if (Status s = publish_parked(fresh, priority, due, 0); s != Status::kOk) return s;
  }
  table_.end_mutation();
  changed = true;
  return Status::kOk;
}

Status Arena::count_failure(std::string_view key_text, uint64_t deadline, uint64_t& before) {
  before = 0;
  if (!key_size_ok(key_text)) return Status::kKeySize;
  const Key key = table_.key(key_text.data(), key_text.size());
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  Family known;
  if (Status s = family(key, known); s != Status::kOk) return guard.end(s);
  if (Status s = failures_locked(known, before); s != Status::kOk) return guard.end(s);
  for (RecordNo record : {known.parked, known.in_flight, known.live}) {
    if (record == kNoRecord) continue;
    set_count(*table_.ticket(record), before + 1);
    return Status::kOk;
  }
  RecordNo fresh;
  if (Status s = table_.reserve_index(1); s != Status::kOk) return guard.end(s);
  if (Status s = prepare(key, {{}, kNothing}, fresh); s != Status::kOk) return guard.end(s);
  table_.begin_mutation();
  if (Status s = publish_parked(fresh, 0, 0, 1); s != Status::kOk) return guard.end(s);
  table_.end_mutation();
  return Status::kOk;
}

Status Arena::failures(std::string_view key_text, uint64_t deadline, uint64_t& count) {
  count = 0;
  if (!key_size_ok(key_text)) return Status::kKeySize;
  const Key key = table_.key(key_text.data(), key_text.size());
  Guard guard(*this, segment_->writable() ? Hold::kWrite : Hold::kRead, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  Family known;
  if (Status s = family(key, known); s != Status::kOk) return guard.end(s);
  return guard.end(failures_locked(known, count));
}

Status Arena::forget(std::string_view key_text, uint64_t deadline) {
  if (!key_size_ok(key_text)) return Status::kKeySize;
  const Key key = table_.key(key_text.data(), key_text.size());
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  Family known;
  std::array<Ticket*, 3> all;
  if (Status s = family(key, known); s != Status::kOk) return guard.end(s);
  if (Status s = tickets(known, all); s != Status::kOk) return guard.end(s);
  for (Ticket* ticket : all) {
    if (ticket != nullptr) set_count(*ticket, 0);
  }
  if (known.parked == kNoRecord ||
      table_.ticket(known.parked)->deadline_ns.load(relaxed) != 0) {
    return Status::kOk;
  }
  table_.begin_mutation();
  if (Status s = table_.erase(known.parked); s != Status::kOk) return guard.end(s);
  table_.end_mutation();
  return Status::kOk;
}

// The bucket is one number, the time at which it is full again (GCRA; ITU-T I.371): a token moves
// that on by `interval_ns`, and is there as soon as that is at most a whole bucket away.
Status Arena::take_token(uint64_t interval_ns, uint64_t burst, uint64_t deadline,
                         uint64_t& wait_ns) {
  wait_ns = 0;
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  std::atomic<uint64_t>& full_ns = segment_->meta().bucket_full_ns;
  // Of figures this large a sum of two does not pass 64 bits, and who waits for 30 years waits.
  constexpr uint64_t kLongest = 1'000'000'000'000'000'000;
  const uint64_t now = now_ns(), whole = std::min(kLongest / interval_ns, burst) * interval_ns;
  const uint64_t empty = now + whole + kLongest;
  const uint64_t full = std::min(std::max(full_ns.load(relaxed), now) + interval_ns, empty);
  full_ns.store(full, relaxed);
  wait_ns = full > now + whole ? full - now - whole : 0;
  return Status::kOk;
}

Status Arena::idle(uint64_t deadline, bool& idle) {
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (Status s = reap_if_due(); s != Status::kOk) return guard.end(s);
  const Meta& m = segment_->meta();
  idle = waiting() == 0 && m.in_flight.count.load(relaxed) == 0;
  return Status::kOk;
}

}  // namespace shmcache
