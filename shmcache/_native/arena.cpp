#include "arena.hpp"

#include <sched.h>

#include <algorithm>
#include <new>

#include "futex.hpp"
#include "guard.hpp"

namespace shmcache {
namespace {

constexpr uint64_t kSleepNs = 100'000'000;
// Rounds of catching up with the writers before a snapshot takes the lock for the last one.
constexpr int kRefreshRounds = 64;
constexpr int kSelectRounds = 8;
// Most bytes that one call of reindex copies for its caller.
constexpr uint64_t kMissingBytes = 16 << 20;

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release = std::memory_order_release;

// Of two slots the last bit of `count` names the current one; it is not written to before the count
// has moved. Copies until a copy is of one count.
template <typename Copy>
void read_slot(const std::atomic<uint64_t>& count, Copy&& copy) {
  for (int tries = 0; tries < 1000; ++tries) {
    const uint64_t now = count.load(acquire);
    copy(now);
    std::atomic_thread_fence(acquire);
    if (count.load(relaxed) == now) break;
  }
}

}  // namespace

Arena::Guard::Guard(Arena& arena, Hold hold, uint64_t deadline) : arena_(arena) {
  Segment& segment = arena.segment();
  if (arena.closed()) {
    status_ = Status::kClosed;
  } else if (hold == Hold::kWrite && !segment.writable()) {
    status_ = Status::kReadOnly;
  } else if (deadline == 0 &&
             (segment.control().lock.load(std::memory_order_relaxed) & kLockDirty) != 0) {
    status_ = Status::kLockTimeout;  // taken, or in need of repair: neither is done in passing
  } else if (status_ = segment.claim_slot(); status_ == Status::kOk) {
    if (!try_lock(segment, hold, found_)) {
      status_ = deadline == 0 ? Status::kLockTimeout : lock(segment, hold, deadline, found_);
    }
  }
  held_ = status_ == Status::kOk;
  clean_ = !found_.dirty;
  if (held_ && !arena.table().watermarks_ok()) {
    status_ = Status::kCorrupt;
    return;
  }
  if (held_ && found_.dirty && hold == Hold::kWrite) {
    status_ = arena.repair_locked();
    clean_ = status_ == Status::kOk;
  }
}

void Arena::Guard::leave() {
  if (held_) unlock(arena_.segment(), clean_);
  held_ = false;
}

Arena::Arena(std::unique_ptr<Segment> segment)
    : segment_(std::move(segment)), table_(*segment_), queue_(*segment_, table_),
      timers_(*segment_, table_, queue_), postings_(*segment_, table_) {}

// P7. The fence orders the mutation before the look at the flag; the sleeper's fence orders its
// flag before its look at the state. So one sees the other.
void Arena::notify_change() {
  Control& c = segment_->control();
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (c.change_sleepers.load(relaxed) != 0 && c.change_sleepers.exchange(0) != 0) {
    c.change_word.fetch_add(1);
    futex_wake(c.change_word, INT_MAX);
  }
}

void Arena::notify_ready() {
  Control& c = segment_->control();
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (c.ready_sleepers.load(relaxed) != 0 && c.ready_sleepers.exchange(0) != 0) {
    c.ready_word.fetch_add(1);
    futex_wake(c.ready_word, 1);
  }
}

// --- writing ------------------------------------------------------------------------------------

Status Arena::prepare(const Key& key, const Entry& entry, RecordNo& fresh) {
  const bool queued = has_queue(segment_->kind());
  if (Status s = table_.prepare(key, entry.value, queued ? sizeof(Ticket) : entry.terms_size, fresh);
      s != Status::kOk) {
    return s;
  }
  if (queued) {
    table_.ticket(fresh)->failures.store(0, relaxed);
  } else {
    postings_.write(fresh, entry.terms);
  }
  return Status::kOk;
}

// `fresh` is prepared; `place` is where its key belongs now.
Status Arena::upsert_locked(const Key& key, RecordNo fresh, const Table::Place& place,
                            uint32_t priority, uint64_t seq) {
  if (has_queue(segment_->kind())) {
    Record& r = table_.record(fresh);
    RecordNo claimed;
    Status s = in_flight(key, claimed);
    if (s != Status::kOk) return s;
    const bool update = place.record != kNoRecord, tail = !update && seq == kAtTheTail;
    bool moves = false;  // to another priority; when it was queued stays
    if (update) {
      const Ticket* old = table_.ticket(place.record);
      if (old == nullptr) return Status::kCorrupt;
      table_.ticket(fresh)->failures.store(old->failures.load(relaxed), relaxed);
      const Position had = Position::unpack(table_.record(place.record).seq.load(relaxed));
      moves = had.priority != priority;
      seq = Position{had.time, priority}.pack();
    }
    r.seq.store(tail ? queue_.next_seq(priority) : seq, relaxed);
    // Linked before it is published: publish gives the old record's link to the free list.
    if (claimed != kNoRecord) {  // the newer version waits for the end of the work on the key
      r.next.store(kBehindAClaim, relaxed);
    } else if (update && !moves) {
      s = queue_.take_place(fresh, place.record);
    } else if (tail) {
      s = queue_.push_waiting(fresh);
    } else {
      if (moves) s = queue_.unlink_waiting(place.record);
      if (s == Status::kOk) s = queue_.push_in_order(fresh);
    }
    if (s != Status::kOk) return s;
    Meta& m = segment_->meta();
    if (m.populated.load(relaxed) == 0) {
      m.initial_last.store(0, relaxed);
      m.populated.store(1, release);
    }
  }
  if (segment_->kind() == Kind::kIndexer) {
    // Before the old record is retired: its memory then belongs to the heap.
    if (place.record != kNoRecord) {
      if (Status s = postings_.unlink(place.record); s != Status::kOk) return s;
    }
    if (Status s = postings_.link(fresh); s != Status::kOk) return s;
  }
  add_to(segment_->meta().writes, 1);
  return table_.publish(fresh, place);
}

// `queued`: a FIFO's record is among the waiting.
Status Arena::erase_locked(RecordNo record, bool queued) {
  if (has_queue(segment_->kind())) {
    if (queued) {
      if (Status s = queue_.unlink_waiting(record); s != Status::kOk) return s;
    }
    note_drained();
  } else if (segment_->kind() == Kind::kIndexer) {
    if (Status s = postings_.unlink(record); s != Status::kOk) return s;
  }
  return table_.erase(record);
}

// FIFO: 0 in `initial_last` says that no item of the first replace is queued any more. Once it is 0
// it stays 0, so readers need no more than to look at it.
void Arena::note_drained() {
  Meta& m = segment_->meta();
  const uint64_t initial = m.initial_last.load(relaxed);
  if (initial == 0) return;
  for (const RecordList& list : m.waiting) {
    const RecordNo head = list.head.load(relaxed);
    if (table_.valid(head) &&
        Position::unpack(table_.record(head).seq.load(relaxed)).time <= initial) {
      return;
    }
  }
  m.initial_last.store(0, release);
}

Status Arena::upsert(const Entry& entry, Upsert how, uint64_t deadline, bool& wrote) {
  return upsert(entry, how, kAtTheTail, deadline, wrote);
}

Status Arena::put_back(const Entry& entry, uint64_t seq, uint64_t deadline, bool& wrote) {
  return upsert(entry, Upsert::kIfAbsent, seq, deadline, wrote);
}

Status Arena::upsert(const Entry& entry, Upsert how, uint64_t seq, uint64_t deadline,
                     bool& wrote) {
  wrote = false;
  if (!key_size_ok(entry.key)) return Status::kKeySize;
  const Key key = table_.key(entry.key.data(), entry.key.size());
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (entry.indexes != table_.root().indexes) return Status::kReindexed;
  if (Status s = postings_.reserve(entry.terms_size / kLeastNode); s != Status::kOk) {
    return guard.end(s);
  }
  Table::Place place;
  if (Status s = table_.locate(key, place); s != Status::kOk) return guard.end(s);
  if (seq != kAtTheTail) {  // what is in flight was queued after the pop that is undone
    RecordNo claimed;
    if (Status s = in_flight(key, claimed); s != Status::kOk) return guard.end(s);
    if (claimed != kNoRecord) return Status::kOk;
  }
  if (place.record == kNoRecord) {  // an update needs no more of the index than it has
    if (Status s = table_.reserve_index(1); s != Status::kOk) return guard.end(s);
    if (Status s = table_.locate(key, place); s != Status::kOk) return guard.end(s);
  } else if (how == Upsert::kIfAbsent) {
    return Status::kOk;
  }
  RecordNo fresh;
  if (Status s = prepare(key, entry, fresh); s != Status::kOk) return guard.end(s);
  table_.begin_mutation();
  if (Status s = upsert_locked(key, fresh, place, entry.priority, seq); s != Status::kOk) {
    return guard.end(s);
  }
  table_.end_mutation();
  guard.leave();
  wrote = true;
  notify_change();
  if (has_queue(segment_->kind())) notify_ready();
  return Status::kOk;
}

Status Arena::upsert_many(const std::vector<Entry>& entries, uint64_t deadline) {
  std::vector<RecordNo> fresh;
  std::vector<Key> keys;
  try {
    fresh.reserve(entries.size());
    keys.reserve(entries.size());
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  }
  for (const Entry& entry : entries) {
    if (!key_size_ok(entry.key)) return Status::kKeySize;
    keys.push_back(table_.key(entry.key.data(), entry.key.size()));
  }
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  uint64_t terms = 0;
  for (const Entry& entry : entries) {
    if (entry.indexes != table_.root().indexes) return Status::kReindexed;
    terms += entry.terms_size / kLeastNode;
  }
  if (Status s = postings_.reserve(terms); s != Status::kOk) return guard.end(s);
  // All memory first: after the last prepare nothing can fail for want of room.
  uint64_t added = 0;
  for (const Key& key : keys) {
    Table::Place place;
    if (Status s = table_.locate(key, place); s != Status::kOk) return guard.end(s);
    added += place.record == kNoRecord ? 1 : 0;
  }
  Status status = table_.reserve_index(added);
  for (size_t i = 0; status == Status::kOk && i < entries.size(); ++i) {
    RecordNo record;
    status = prepare(keys[i], entries[i], record);
    if (status == Status::kOk) fresh.push_back(record);
  }
  if (status != Status::kOk) {
    for (RecordNo record : fresh) {
      if (Status s = table_.discard(record); s != Status::kOk) return guard.end(s);
    }
    return guard.end(status);
  }
  table_.begin_mutation();
  for (size_t i = 0; i < entries.size(); ++i) {
    Table::Place place;
    if (Status s = table_.locate(keys[i], place); s != Status::kOk) return guard.end(s);
    const Status s = upsert_locked(keys[i], fresh[i], place, entries[i].priority, kAtTheTail);
    if (s != Status::kOk) return guard.end(s);
  }
  table_.end_mutation();
  guard.leave();
  notify_change();
  if (has_queue(segment_->kind())) notify_ready();
  return Status::kOk;
}

Status Arena::erase(std::string_view key_text, uint64_t deadline, bool& was_there) {
  was_there = false;
  if (!key_size_ok(key_text)) return Status::kKeySize;
  const Key key = table_.key(key_text.data(), key_text.size());
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  Table::Place place;
  if (Status s = table_.locate(key, place); s != Status::kOk) return guard.end(s);
  RecordNo claimed;
  if (Status s = in_flight(key, claimed); s != Status::kOk) return guard.end(s);
  if (place.record == kNoRecord && claimed == kNoRecord) return Status::kOk;
  table_.begin_mutation();
  add_to(segment_->meta().deletes, 1);
  if (claimed != kNoRecord) {
    Ticket* ticket = table_.ticket(claimed);
    if (ticket == nullptr) return guard.end(Status::kCorrupt);
    // First: while a newer version is there, the mark says nothing (claims.cpp).
    ticket->cancelled.store(1, relaxed);
  }
  if (place.record != kNoRecord) {
    const Status s = erase_locked(place.record, claimed == kNoRecord);
    if (s != Status::kOk) return guard.end(s);
  }
  table_.end_mutation();
  guard.leave();
  was_there = true;
  notify_change();
  return Status::kOk;
}

// --- replace ------------------------------------------------------------------------------------

void Arena::stage_resource_version(std::string_view text, uint64_t txn) {
  Meta& m = segment_->meta();
  ResourceVersion& next = m.resource_version[(m.resource_versions.load(relaxed) + 1) & 1];
  // Who reads a part of what follows sees that the count has moved since (resource_version).
  std::atomic_thread_fence(release);
  next.txn.store(txn, relaxed);
  next.claims.store(m.claims.load(relaxed), relaxed);
  const uint64_t size = std::min(text.size(), kResourceVersionSize);
  next.size.store(size, relaxed);
  copy_in(next.text, text.data(), size);
}

// The part of a replace beside its records, by the same rule: it happened if its txn is not
// newer than the root.
void Arena::settle_replace(uint64_t generation) {
  Meta& m = segment_->meta();
  const uint64_t next = m.resource_versions.load(relaxed) + 1;
  const ResourceVersion& rv = m.resource_version[next & 1];
  const uint64_t txn = rv.txn.load(relaxed);
  if (txn != 0 && txn <= generation) {
    m.replaced_claims.store(rv.claims.load(relaxed), relaxed);
    m.populated.store(1, release);  // before the count: see next_is_current
    m.resource_versions.store(next, release);
  }
  m.resource_version[0].txn.store(0, relaxed);
  m.resource_version[1].txn.store(0, relaxed);
}

Status Arena::replace(const std::vector<Entry>& entries, std::string_view resource_version,
                      uint64_t deadline) {
  for (const Entry& entry : entries) {
    if (!key_size_ok(entry.key)) return Status::kKeySize;
  }
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  const uint32_t indexes = table_.root().indexes;
  for (const Entry& entry : entries) {
    if (entry.indexes != indexes) return Status::kReindexed;
  }
  Status status;
  try {
    status = replace_locked(entries, &resource_version, indexes);
  } catch (const std::bad_alloc&) {
    status = Status::kNoMemory;
  }
  if (status != Status::kOk) return guard.end(status);
  guard.leave();
  notify_change();
  if (has_queue(segment_->kind()) && !entries.empty()) notify_ready();
  return Status::kOk;
}

Status Arena::replace_locked(const std::vector<Entry>& entries,
                             const std::string_view* resource_version, uint32_t indexes) {
  Meta& m = segment_->meta();
  const bool fifo = has_queue(segment_->kind());
  const bool indexer = segment_->kind() == Kind::kIndexer;
  uint64_t terms = 0;
  for (const Entry& entry : entries) terms += entry.terms_size / kLeastNode;
  if (Status s = postings_.reserve(terms); s != Status::kOk) return s;
  const uint64_t txn = table_.root().generation + 1;
  // In list order by first occurrence; a later duplicate takes over the place of the earlier.
  std::vector<RecordNo> order;
  order.reserve(entries.size());  // before anything is changed: the only allocation
  Table::Spare spare;
  const uint64_t held = m.held.load(relaxed);
  if (Status s = table_.clear_spare(table_.index_log2(entries.size() + held), spare);
      s != Status::kOk) {
    return s;
  }
  const uint64_t old_used = table_.records_used();
  for (uint64_t i = 0; i < old_used; ++i) {
    Record& r = table_.record(RecordNo{static_cast<uint32_t>(i)});
    const State state = state_of(r.state.load(relaxed));
    if (state == State::kLive) r.txn.store(txn, relaxed);  // doomed
    if (state == State::kHeld) {
      const Status s = Table::place_in(spare, r.hash.load(relaxed),
                                       RecordNo{static_cast<uint32_t>(i)});
      if (s != Status::kOk) return s;
    }
  }
  const uint64_t first = fifo ? queue_.free_time() : 0;
  uint64_t version = m.version.load(relaxed), staged = 0, kept = 0;
  Status status = Status::kOk;
  // In a large table each entry waits for memory in both indexes: so those ahead are asked for.
  constexpr size_t kAhead = 16;
  std::array<Key, kAhead> ahead;
  const auto look_ahead = [&](size_t i) {
    if (i >= entries.size()) return;
    ahead[i % kAhead] = table_.key(entries[i].key.data(), entries[i].key.size());
    table_.prefetch(spare, ahead[i % kAhead].hash);
  };
  for (size_t i = 0; i < kAhead; ++i) look_ahead(i);
  for (size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    const Key key = ahead[i % kAhead];
    look_ahead(i + kAhead);
    Table::Place old, place;
    if (status = table_.locate(key, old); status != Status::kOk) break;
    if (status = table_.locate_in(spare, key, place); status != Status::kOk) break;
    RecordNo chosen = kNoRecord;
    if (!fifo && old.record != kNoRecord && table_.same_value(old.record, entry.value) &&
        (!indexer || postings_.same_terms(old.record, entry.terms))) {
      chosen = old.record;
    } else {
      if (status = prepare(key, entry, chosen); status != Status::kOk) break;
      Record& r = table_.record(chosen);
      const uint64_t time =
          place.record != kNoRecord
              ? Position::unpack(table_.record(place.record).seq.load(relaxed)).time
              : first + order.size();
      r.seq.store(Position{time, entry.priority}.pack(), relaxed);
      r.txn.store(txn, relaxed);
      r.state.store(make_state(++version, State::kStaged), release);
      ++staged;
    }
    const RecordNo earlier = place.record;
    if (earlier != kNoRecord && earlier != chosen) {
      if (state_of(table_.record(earlier).state.load(relaxed)) == State::kStaged) {
        if (status = table_.discard(earlier); status != Status::kOk) break;
        --staged;
      } else {
        table_.record(earlier).txn.store(txn, relaxed);  // doomed again
        --kept;
      }
    }
    if (chosen == old.record && earlier != chosen) {
      table_.record(chosen).txn.store(0, relaxed);  // stays as it is
      ++kept;
    }
    if (earlier == kNoRecord) order.push_back(chosen);
    if (fifo) {
      order[Position::unpack(table_.record(chosen).seq.load(relaxed)).time - first] = chosen;
    }
    spare.words[place.slot].store(index_word(key.hash, chosen), relaxed);
  }
  const uint64_t used = table_.records_used();
  if (status != Status::kOk) {
    if (status == Status::kCorrupt) return status;
    m.version.store(version, release);  // a version that was given is never given again
    for (uint64_t i = 0; i < used; ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      Record& r = table_.record(number);
      const State state = state_of(r.state.load(relaxed));
      if (state == State::kStaged) {
        if (Status s = table_.discard(number); s != Status::kOk) return s;
      } else if (state == State::kLive) {
        r.txn.store(0, relaxed);
      }
    }
    return status;
  }
  if (resource_version != nullptr) stage_resource_version(*resource_version, txn);
  if (fifo) m.next_time.store(first + order.size(), relaxed);
  if (m.populated.load(relaxed) == 0) {
    m.initial_last.store(order.empty() ? 0 : first + order.size() - 1, relaxed);
  }
  const uint64_t removed = m.live.load(relaxed) - kept;
  const bool ring = staged + removed <= segment_->geometry().ring_entries / 2;

  table_.begin_mutation();
  table_.set_version(version + 1);  // one more: an equal list is a change too (wait_change)
  if (!ring) table_.overflow_ring();
  table_.publish_root(spare, indexes);  // here it happens
  m.tombstones.store(0, relaxed);
  m.live.store(order.size(), relaxed);
  if (fifo) queue_.clear_waiting();
  for (uint64_t i = 0; i < used; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    Record& r = table_.record(number);
    const uint64_t state = r.state.load(relaxed);
    if (state_of(state) == State::kFree || state_of(state) == State::kHeld ||
        r.txn.load(relaxed) == 0) {
      continue;
    }
    if (ring) table_.push_ring(number);
    if (state_of(state) == State::kStaged) {
      // STAGED with txn 0 is LIVE by the rule; LIVE with this txn would be doomed. So txn first.
      r.txn.store(0, relaxed);
      r.state.store(make_state(version_of(state), State::kLive), release);
      m.used_bytes.store(m.used_bytes.load(relaxed) + table_.bytes_of(number), relaxed);
      if (indexer) {
        if (Status s = postings_.link(number); s != Status::kOk) return s;
      }
    } else {
      if (indexer) {
        if (Status s = postings_.unlink(number); s != Status::kOk) return s;
      }
      if (Status s = table_.retire(number); s != Status::kOk) return s;
    }
  }
  if (fifo) {
    if (Status s = mark_behind(); s != Status::kOk) return s;
    for (RecordNo number : order) {
      if (table_.record(number).next.load(relaxed) == kBehindAClaim) continue;
      if (Status s = queue_.push_waiting(number); s != Status::kOk) return s;
    }
    note_drained();
  }
  add_to(m.writes, staged);
  add_to(m.deletes, removed);
  settle_replace(txn);
  table_.end_mutation();
  return Status::kOk;
}

// --- reading ------------------------------------------------------------------------------------

Status Arena::find(std::string_view key_text, Hit& hit) const {
  if (closed()) return Status::kClosed;
  if (!key_size_ok(key_text)) return Status::kMiss;  // no such key can be stored
  return table_.find(table_.key(key_text.data(), key_text.size()), hit);
}

Status Arena::copy_record(const Hit& hit, bool with_value, Item& item) const {
  const uint64_t value_size = with_value ? hit.value_size : 0;
  item.data.reset(new (std::nothrow) char[hit.key_size + value_size]);
  if (!item.data) return Status::kNoMemory;
  item.key_size = hit.key_size;
  item.value_size = value_size;
  if (!table_.read_key(hit, item.data.get())) return Status::kBusy;
  if (with_value && !table_.read_value(hit, item.data.get() + hit.key_size)) return Status::kBusy;
  return Status::kOk;
}

Status Arena::copy(std::string_view key, uint64_t deadline, Item& item) {
  Guard guard(*this, Hold::kRead, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  // Nobody writes now, so the first try decides, even over what a dead writer left.
  Hit hit;
  if (Status s = find(key, hit); s != Status::kOk) return s;
  return copy_record(hit, true, item);
}

bool Arena::current(const View& view) const {
  return segment_->meta().mutation_seq.load(acquire) == view.mutation_seq;
}

// Take note of what `record` is now, and copy it if it is wanted.
Status Arena::examine(View& view, RecordNo number, const Want& want, bool with_values,
                      std::unordered_map<uint32_t, Item>& copies) const {
  uint64_t& known = view.states[raw(number)];
  Hit hit;
  const Status status = table_.peek(number, hit);
  if (status == Status::kCorrupt) return status;
  // Changing right now: the caller comes again, because a mutation is running.
  if (status == Status::kBusy) return Status::kOk;
  const bool live = status == Status::kOk && state_of(hit.state) == State::kLive;
  view.live += static_cast<uint64_t>(live) - static_cast<uint64_t>(known != 0);
  if (!live || known != hit.state) copies.erase(raw(number));
  known = live ? hit.state : 0;
  if (live && !copies.contains(raw(number)) && want(number, hit.state)) {
    Item item;
    const Status copied = copy_record(hit, with_values, item);
    if (copied == Status::kNoMemory) return copied;
    if (copied == Status::kOk) copies.emplace(raw(number), std::move(item));
  }
  return Status::kOk;
}

// Examine what the ring names between view.ring_pos and pos, or everything if the view fell
// behind the ring.
Status Arena::catch_up(View& view, uint64_t pos, const Want& want, bool with_values,
                       std::unordered_map<uint32_t, Item>& copies) const {
  const uint64_t used = table_.records_used(), entries = segment_->geometry().ring_entries;
  try {
    if (view.states.size() < used) view.states.resize(used, 0);
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  }
  bool all = view.mutation_seq % 2 != 0 || pos - view.ring_pos >= entries;
  try {
    if (!all) view.touched.reserve(view.touched.size() + (pos - view.ring_pos));
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  }
  for (uint64_t at = view.ring_pos; !all && at < pos; ++at) {
    const uint32_t number = segment_->ring()[at & (entries - 1)].load(relaxed);
    std::atomic_thread_fence(acquire);
    // Overwritten while we read: a writer has come round (one push may be half done).
    if (segment_->meta().ring_pos.load(relaxed) - at >= entries) {
      all = true;
    } else if (number >= view.states.size()) {
      return Status::kCorrupt;
    } else if (Status s = examine(view, RecordNo{number}, want, with_values, copies);
               s != Status::kOk) {
      return s;
    } else {
      view.touched.push_back(number);
    }
  }
  view.all = view.all || all || view.touched.size() > entries;
  if (view.all) view.touched.clear();
  for (uint64_t i = 0; all && i < used; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    if (Status s = examine(view, number, want, with_values, copies); s != Status::kOk) return s;
  }
  view.ring_pos = pos;
  return Status::kOk;
}

Status Arena::refresh(View& view, const Want& want, bool with_values, uint64_t deadline,
                      std::unordered_map<uint32_t, Item>& copies) {
  const Meta& m = segment_->meta();
  if (closed()) return Status::kClosed;
  for (int round = 0; round < kRefreshRounds; ++round) {
    const uint64_t before = m.mutation_seq.load(acquire);
    const uint64_t pos = m.ring_pos.load(acquire), version = m.version.load(acquire);
    std::atomic_thread_fence(acquire);
    // Only entries of mutations that are complete count as caught up with.
    if (before % 2 != 0 || m.mutation_seq.load(relaxed) != before) {
      sched_yield();
      continue;
    }
    if (Status s = catch_up(view, pos, want, with_values, copies); s != Status::kOk) return s;
    view.mutation_seq = before;  // even: the next round is incremental
    std::atomic_thread_fence(acquire);
    if (m.mutation_seq.load(relaxed) == before) {
      view.version = version;
      return Status::kOk;
    }
  }
  // The writers never paused, or one died in the middle. Hold them off for one round.
  Guard guard(*this, segment_->writable() ? Hold::kWrite : Hold::kRead, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  view.version = m.version.load(relaxed);
  if (guard.dirty() && !segment_->writable()) {
    return truth_locked(view, want, with_values, copies);
  }
  const uint64_t pos = m.ring_pos.load(relaxed);
  if (Status s = catch_up(view, pos, want, with_values, copies); s != Status::kOk) return s;
  view.mutation_seq = m.mutation_seq.load(relaxed);
  return Status::kOk;
}

// Layout.hpp's rule for what a crash left: what repair would keep, duplicates aside.
bool Arena::truly_live(const Record& r) const {
  const uint64_t generation = table_.root().generation, txn = r.txn.load(relaxed);
  switch (state_of(r.state.load(relaxed))) {
    case State::kLive: return txn == 0 || txn > generation;
    case State::kStaged: return txn <= generation;
    default: return false;
  }
}

// A reader that may not repair, after a writer died: it holds the lock, so nothing moves, and
// applies the rule of repair without writing: what it finds stays the truth until somebody repairs.
// The view is of that odd mutation_seq, so it is current until then, and the next look is at all.
Status Arena::truth_locked(View& view, const Want& want, bool with_values,
                           std::unordered_map<uint32_t, Item>& copies) const {
  try {
    const uint64_t used = table_.records_used();
    view.states.assign(used, 0);
    view.live = 0;
    view.mutation_seq = segment_->meta().mutation_seq.load(relaxed) | 1;
    view.all = true;
    copies.clear();
    std::unordered_map<std::string, RecordNo> newest;
    for (uint64_t i = 0; i < used; ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      Hit hit;
      Item key;
      if (!truly_live(table_.record(number)) || table_.peek(number, hit) != Status::kOk) continue;
      if (Status s = copy_record(hit, false, key); s != Status::kOk) return s;
      auto [at, first] = newest.try_emplace(std::string(key.key()), number);
      if (!first && version_of(table_.record(at->second).state.load(relaxed)) <
                        version_of(hit.state)) {
        at->second = number;
      }
    }
    for (const auto& [key, number] : newest) {
      Hit hit;
      if (table_.peek(number, hit) != Status::kOk) continue;
      // What is STAGED now, repair makes LIVE, of the same version.
      const uint64_t live = make_state(version_of(hit.state), State::kLive);
      view.states[raw(number)] = live;
      ++view.live;
      if (!want(number, live)) continue;
      Item item;
      if (Status s = copy_record(hit, with_values, item); s != Status::kOk) return s;
      copies.emplace(raw(number), std::move(item));
    }
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  }
  return Status::kOk;
}

// --- Indexer ------------------------------------------------------------------------------------

// `look(seq)` at an instant in which nobody changes anything: without the lock, and if writers give
// it no chance, with it. `truth()` stands in after a writer's death, where this handle may not
// repair.
template <typename Look, typename Truth>
Status Arena::at_one_instant(uint64_t deadline, Look&& look, Truth&& truth) {
  const Meta& m = segment_->meta();
  if (closed()) return Status::kClosed;
  for (int round = 0; round < kSelectRounds; ++round) {
    const uint64_t before = m.mutation_seq.load(acquire);
    if (before % 2 != 0) {
      sched_yield();
      continue;
    }
    const Status s = look(before);
    std::atomic_thread_fence(acquire);
    if (m.mutation_seq.load(relaxed) == before && s != Status::kBusy) return s;
  }
  Guard guard(*this, segment_->writable() ? Hold::kWrite : Hold::kRead, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (guard.dirty() && !segment_->writable()) return truth();
  const Status s = look(m.mutation_seq.load(relaxed));
  return guard.end(s == Status::kBusy ? Status::kCorrupt : s);
}

Status Arena::select(uint32_t index, const std::vector<std::string_view>& values, const Want& want,
                     bool with_values, uint64_t deadline, std::vector<Found>& found,
                     std::unordered_map<uint32_t, Item>& copies) try {
  auto take = [&](RecordNo number, const Hit& hit) -> Status {
    found.push_back({number, hit.state});
    if (!want(number, hit.state)) return Status::kOk;
    Item item;
    const Status s = copy_record(hit, with_values, item);
    if (s == Status::kOk) copies.emplace(raw(number), std::move(item));
    return s;
  };
  auto look = [&](uint64_t seq) -> Status {
    found.clear();
    copies.clear();
    std::vector<RecordNo> numbers;
    for (std::string_view value : values) {
      if (Status s = postings_.members(index, value, seq, numbers); s != Status::kOk) return s;
    }
    if (values.size() > 1) {
      std::sort(numbers.begin(), numbers.end());
      numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
    }
    for (RecordNo number : numbers) {
      Hit hit;
      if (!table_.valid(number) || table_.peek(number, hit) != Status::kOk ||
          state_of(hit.state) != State::kLive) {
        return Status::kBusy;
      }
      if (Status s = take(number, hit); s != Status::kOk) return s;
    }
    return Status::kOk;
  };
  auto truth = [&]() -> Status {
    found.clear();
    copies.clear();
    return each_true([&](RecordNo number, const Hit& hit) {
      const bool has = std::any_of(values.begin(), values.end(), [&](std::string_view value) {
        return postings_.has(hit, index, value);
      });
      return has ? take(number, hit) : Status::kOk;
    });
  };
  return at_one_instant(deadline, look, truth);
} catch (const std::bad_alloc&) {
  return Status::kNoMemory;
}

Status Arena::index_values(uint32_t index, uint64_t deadline,
                           std::vector<std::string>& values) try {
  auto look = [&](uint64_t seq) {
    values.clear();
    return postings_.values(index, seq, values);
  };
  auto truth = [&]() -> Status {
    std::set<std::string> all;
    const Status s = each_true([&](RecordNo, const Hit& hit) {
      postings_.collect(hit, index, all);
      return Status::kOk;
    });
    values.assign(all.begin(), all.end());
    return s;
  };
  return at_one_instant(deadline, look, truth);
} catch (const std::bad_alloc&) {
  return Status::kNoMemory;
}

// Every entry as truth_locked finds it. REQUIRES: the lock.
template <typename Each>
Status Arena::each_true(Each&& each) const {
  View view;
  std::unordered_map<uint32_t, Item> none;
  const Want never = [](RecordNo, uint64_t) { return false; };
  if (Status s = truth_locked(view, never, false, none); s != Status::kOk) return s;
  for (uint64_t i = 0; i < view.states.size(); ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    Hit hit;
    if (view.states[i] == 0 || table_.peek(number, hit) != Status::kOk) continue;
    if (Status s = each(number, hit); s != Status::kOk) return s;
  }
  return Status::kOk;
}

Status Arena::reindex(const std::vector<std::string>& names, uint32_t had,
                      const std::unordered_map<uint64_t, std::string>& terms,
                      uint64_t deadline, std::vector<Missing>& missing) {
  missing.clear();
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (table_.root().indexes != had || had + names.size() > kMaxIndexes) return Status::kReindexed;
  Status status;
  try {
    status = reindex_locked(names, terms, missing);
  } catch (const std::bad_alloc&) {
    status = Status::kNoMemory;
  }
  if (status != Status::kOk) return guard.end(status);
  guard.leave();
  notify_change();
  return Status::kOk;
}

Status Arena::reindex_locked(const std::vector<std::string>& names,
                             const std::unordered_map<uint64_t, std::string>& terms,
                             std::vector<Missing>& missing) {
  const uint32_t had = table_.root().indexes;
  const uint32_t indexes = had + static_cast<uint32_t>(names.size());
  std::vector<Entry> entries;
  std::vector<std::string> keys, packed;  // what the entries point to; reserved, so it stays
  keys.reserve(table_.records_used());
  packed.reserve(table_.records_used());
  uint64_t copied = 0;
  for (uint64_t i = 0, n = table_.records_used(); i < n && copied < kMissingBytes; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    Hit hit;
    if (state_of(table_.record(number).state.load(relaxed)) != State::kLive) continue;
    if (table_.peek(number, hit) != Status::kOk) return Status::kCorrupt;
    const auto more = terms.find(version_of(hit.state));
    if (more == terms.end()) {
      Missing lacks{version_of(hit.state), {}};
      if (Status s = copy_record(hit, true, lacks.item); s != Status::kOk) return s;
      copied += hit.key_size + hit.value_size;
      missing.push_back(std::move(lacks));
      continue;
    }
    if (!missing.empty()) continue;
    keys.emplace_back(hit.key_size, '\0');
    copy_out(keys.back().data(), hit.extent, hit.key_size);
    packed.push_back(postings_.packed(hit).append(more->second));
    // The payload stays where it is while the lock is held: its new copy is made from there.
    Entry entry{keys.back(), {hit.value(), hit.value_size}, packed.back(), 0, indexes};
    if (!Postings::measure(entry.terms, indexes, entry.terms_size)) return Status::kCorrupt;
    entries.push_back(entry);
  }
  if (!missing.empty()) return Status::kMiss;
  for (uint32_t i = 0; i < names.size(); ++i) segment_->set_index_name(had + i, names[i]);
  return replace_locked(entries, nullptr, indexes);
}

// --- FIFO ---------------------------------------------------------------------------------------

Status Arena::try_pop(uint64_t max_items, uint64_t deadline, std::vector<Item>& items) {
  if (Status s = worth_taking(); s != Status::kOk) return s;
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  if (Status s = something_waiting(); s != Status::kOk) return guard.end(s);
  // Copies first: an item leaves the queue only when its consumer has it.
  std::vector<RecordNo> taken;
  Queue::Cursor cursor(queue_);
  RecordNo head;
  try {
    for (head = cursor.next(); head != kNoRecord && taken.size() < max_items;
         head = cursor.next()) {
      Hit hit;
      if (taken.size() >= table_.records_used() || table_.peek(head, hit) != Status::kOk) {
        items.clear();
        return guard.end(Status::kCorrupt);
      }
      Item item;
      if (Status s = copy_record(hit, true, item); s != Status::kOk) {
        items.clear();
        return guard.end(s);
      }
      item.seq = table_.record(head).seq.load(relaxed);
      items.push_back(std::move(item));
      taken.push_back(head);
    }
  } catch (const std::bad_alloc&) {
    items.clear();
    return Status::kNoMemory;
  }
  if (taken.empty()) return guard.end(Status::kCorrupt);
  table_.begin_mutation();
  for (RecordNo record : taken) {
    if (Status s = erase_locked(record, true); s != Status::kOk) {
      items.clear();
      return guard.end(s);
    }
  }
  count_pops(taken.size());
  table_.end_mutation();
  guard.leave();
  notify_change();
  if (head != kNoRecord) notify_ready();  // the baton
  return Status::kOk;
}

void Arena::count_pops(uint64_t more) {
  add_to(segment_->meta().pops, more);
  add_to(segment_->slot((segment_->owner_id() >> kGenerationBits) - 1).pops, more);
}

Status Arena::wait_ready(uint64_t deadline) {
  Control& c = segment_->control();
  const Meta& m = segment_->meta();
  if (closed()) return Status::kClosed;
  const uint64_t now = now_ns();
  if (now >= deadline) return Status::kEmpty;
  const uint32_t word = c.ready_word.load();
  c.ready_sleepers.store(1);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // P7
  // DIRTY: as in try_pop, an item may be there that is not yet counted, and never will be if its
  // producer is dead.
  if (m.waiting_count.load(relaxed) != 0 ||
      (m.shut_down.load(relaxed) != 0 && m.in_flight.count.load(relaxed) == 0) ||
      (c.lock.load(relaxed) & kLockDirty) != 0) {
    return Status::kOk;
  }
  // At most kSleepNs: then the caller looks, and what a dead consumer had comes back to it.
  const uint64_t timer =
      m.shut_down.load(relaxed) == 0 ? m.next_due_ns.load(relaxed) : Timers::kNever;
  if (now >= timer) return Status::kOk;
  const int rc = futex_wait(c.ready_word, word, std::min({deadline, now + kSleepNs, timer}));
  // Others may still sleep: let the next producer look.
  c.ready_sleepers.store(1);
  return rc == EINTR ? Status::kInterrupted : Status::kOk;
}

Status Arena::queued(bool with_values, uint64_t deadline, std::vector<Item>& items) {
  Guard guard(*this, segment_->writable() ? Hold::kWrite : Hold::kRead, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  // By `seq`, not by the links: so it is also right after a crash, for a handle that may not
  // repair. A key may then have two records; both are of one time, and the later version counts.
  try {
    struct Placed {
      uint64_t seq, time, version;
      RecordNo record;
    };
    std::vector<Placed> order;
    for (uint64_t i = 0, n = table_.records_used(); i < n; ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      const Record& r = table_.record(number);
      if (truly_live(r)) {
        const uint64_t seq = r.seq.load(relaxed);
        order.push_back({seq, Position::unpack(seq).time, version_of(r.state.load(relaxed)),
                         number});
      }
    }
    std::sort(order.begin(), order.end(), [](const Placed& a, const Placed& b) {
      return a.time != b.time ? a.time < b.time : a.version > b.version;
    });
    order.erase(std::unique(order.begin(), order.end(),
                            [](const Placed& a, const Placed& b) { return a.time == b.time; }),
                order.end());
    std::sort(order.begin(), order.end(),
              [](const Placed& a, const Placed& b) { return a.seq < b.seq; });
    for (const Placed& placed : order) {
      Hit hit;
      if (table_.peek(placed.record, hit) != Status::kOk) return Status::kCorrupt;
      Item item;
      if (Status s = copy_record(hit, with_values, item); s != Status::kOk) return s;
      items.push_back(std::move(item));
    }
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  }
  return Status::kOk;
}

uint64_t Arena::oldest_time() const {
  const RecordNo head = queue_.head();
  if (!table_.valid(head)) return 0;
  const Record& r = table_.record(head);
  return state_of(r.state.load(acquire)) == State::kFree
             ? 0
             : Position::unpack(r.seq.load(relaxed)).time;
}

Status Arena::shut_down(ShutDown how, bool immediate, uint64_t deadline) {
  {
    Guard guard(*this, Hold::kWrite, deadline);
    if (guard.status() != Status::kOk) return guard.status();
    segment_->meta().shut_down.store(static_cast<uint32_t>(how), release);
    if (immediate) {
      table_.begin_mutation();
      for (RecordNo head; (head = queue_.head()) != kNoRecord;) {
        if (!table_.valid(head)) return guard.end(Status::kCorrupt);
        if (Status s = erase_locked(head, true); s != Status::kOk) return guard.end(s);
        add_to(segment_->meta().deletes, 1);
      }
      if (Status s = cancel_claims(); s != Status::kOk) return guard.end(s);
      table_.end_mutation();
    }
  }
  Control& c = segment_->control();
  c.ready_word.fetch_add(1);
  futex_wake(c.ready_word, INT_MAX);  // everybody has something to do: to leave
  notify_change();
  return Status::kOk;
}

// --- both ---------------------------------------------------------------------------------------

uint64_t Arena::version() const { return segment_->meta().version.load(acquire); }
uint64_t Arena::size() const { return segment_->meta().live.load(acquire); }

bool Arena::has_synced() const {
  const Meta& m = segment_->meta();
  if (m.populated.load(acquire) == 0 && !next_is_current(m.resource_versions.load(acquire))) {
    return false;
  }
  return !has_queue(segment_->kind()) || m.initial_last.load(acquire) == 0;
}

Status Arena::wait_change(uint64_t version, uint64_t deadline, uint64_t& now) {
  Control& c = segment_->control();
  if (closed()) return Status::kClosed;
  now = this->version();
  if (now != version) return Status::kOk;
  const uint64_t time = now_ns();
  if (time >= deadline) return Status::kEmpty;
  const uint32_t word = c.change_word.load();
  c.change_sleepers.store(1);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // P7
  now = this->version();
  if (now != version) return Status::kOk;
  const int rc = futex_wait(c.change_word, word, std::min(deadline, time + kSleepNs));
  now = this->version();
  if (now != version) return Status::kOk;
  return rc == EINTR ? Status::kInterrupted : Status::kBusy;  // kBusy: call again
}

// The rule of settle_replace, without settling: a replace has happened when its root is there, even
// if its writer has died since.
bool Arena::next_is_current(uint64_t count) const {
  const Meta& m = segment_->meta();
  // The root first: a repair takes the mark of a replace that never happened away before it
  // publishes a root of its own.
  const uint64_t generation = table_.root().generation;
  const uint64_t txn = m.resource_version[(count + 1) & 1].txn.load(relaxed);
  return txn != 0 && txn <= generation;
}

std::string Arena::resource_version() const {
  const Meta& m = segment_->meta();
  std::string text;
  read_slot(m.resource_versions, [&](uint64_t count) {
    const ResourceVersion& rv = m.resource_version[(count + next_is_current(count)) & 1];
    text.resize(std::min(rv.size.load(relaxed), kResourceVersionSize));
    copy_out(text.data(), rv.text, text.size());
  });
  return text;
}

Status Arena::bookmark(std::string_view text, uint64_t deadline) {
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  stage_resource_version(text, 0);  // txn 0: nothing to settle, the count alone decides
  Meta& m = segment_->meta();
  m.resource_versions.store(m.resource_versions.load(relaxed) + 1, release);
  return Status::kOk;
}

void Arena::set_report(const Report& report) {
  Meta& m = segment_->meta();
  const uint64_t next = m.reports.load(relaxed) + 1;
  std::atomic_thread_fence(release);  // as in stage_resource_version
  copy_in(m.report[next & 1], &report, sizeof report);
  m.reports.store(next, release);
}

Report Arena::report() const {
  const Meta& m = segment_->meta();
  Report report{};
  read_slot(m.reports,
            [&](uint64_t count) { copy_out(&report, m.report[count & 1], sizeof report); });
  return report;
}

Status Arena::settle(uint64_t deadline) { return Guard(*this, Hold::kWrite, deadline).status(); }

Status Arena::testing_repair(uint64_t deadline) {
  Guard guard(*this, Hold::kWrite, deadline);
  if (guard.status() != Status::kOk) return guard.status();
  return guard.end(repair_locked());
}

}  // namespace shmcache
