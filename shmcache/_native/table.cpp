#include "table.hpp"

#include <algorithm>

#include "segment.hpp"

namespace shmcache {
namespace {

constexpr int kReadTries = 32;
// Load at most 3/4, grown to at most 1/2: a miss then probes some 8 words, one cache line.
// Where there is no memory to grow, up to 7/8 rather than an error.
constexpr bool load_ok(uint64_t words, uint64_t size) { return words * 4 <= size * 3; }
constexpr bool load_bearable(uint64_t words, uint64_t size) { return words * 8 <= size * 7; }
constexpr uint64_t kRecordsGrowLeast = 64, kRecordsGrowMost = 16384;

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto acquire = std::memory_order_acquire;
constexpr auto release = std::memory_order_release;

}  // namespace

Key Table::key(const char* data, uint64_t size) const {
  return {data, static_cast<uint32_t>(size), segment_.hash()(data, size)};
}

Root Table::root() const { return Root::unpack(segment_.meta().root.load(acquire)); }

bool Table::committed(const Root& root) const {
  return root.log2 >= kIndexMinLog2 && root.log2 <= segment_.geometry().index_max_log2 &&
         uint64_t{8} << root.log2 <= segment_.meta().index_committed.load(acquire);
}

Status Table::root(Root& root) const {
  root = this->root();
  return committed(root) ? Status::kOk : Status::kCorrupt;
}

bool Table::watermarks_ok() const {
  const Geometry& g = segment_.geometry();
  const Meta& m = segment_.meta();
  const uint64_t index = m.index_committed.load(acquire), heap = m.heap_committed.load(acquire);
  const uint64_t records = m.records_committed.load(acquire);
  const uint64_t buckets = m.buckets_committed.load(acquire);
  Root now;
  return index % kPage == 0 && index <= uint64_t{8} << g.index_max_log2 && heap % kPage == 0 &&
         heap != 0 && heap <= g.heap_max && records <= g.max_records &&
         records * sizeof(Record) % kPage == 0 && m.records_used.load(acquire) <= records &&
         buckets % kPage == 0 && buckets <= g.buckets_max &&
         (g.buckets_max == 0 || std::has_single_bit(buckets)) &&
         m.live.load(acquire) <= records && root(now) == Status::kOk &&
         now.indexes <= (g.buckets_max == 0 ? 0 : kMaxIndexes);
}

// P4, the writer's half of a seqlock.
void Table::begin_mutation() {
  Meta& m = segment_.meta();
  version_ = m.version.load(relaxed);
  m.mutation_seq.store(m.mutation_seq.load(relaxed) + 1, relaxed);
  std::atomic_thread_fence(release);
}

void Table::end_mutation() {
  Meta& m = segment_.meta();
  m.version.store(version_, release);
  m.mutation_seq.store(m.mutation_seq.load(relaxed) + 1, release);
}

Record& Table::record(RecordNo r) const { return segment_.records()[raw(r)]; }

bool Table::valid(RecordNo r) const {
  return raw(r) < std::min(segment_.meta().records_committed.load(acquire),
                           segment_.geometry().max_records);
}

uint64_t Table::records_used() const {
  const Meta& m = segment_.meta();
  return std::min({m.records_used.load(acquire), m.records_committed.load(acquire),
                   segment_.geometry().max_records});
}

// --- readers ------------------------------------------------------------------------------------

Status Table::peek(RecordNo number, Hit& hit) const {
  const Record& r = record(number);
  const uint64_t state = r.state.load(acquire);
  if (state_of(state) == State::kFree) {
    hit.state = state;
    return Status::kMiss;
  }
  hit.record = number;
  hit.state = state;
  hit.key_size = r.key_size.load(relaxed);
  hit.value_size = r.value_size.load(relaxed);
  hit.terms_size = r.terms_size.load(relaxed);
  const uint64_t extent = raw(r.extent.load(relaxed)), end = heap_.committed();
  const bool fits = hit.key_size <= kMaxKeySize && extent % 8 == 0 && extent <= end &&
                    hit.value_size <= end && hit.terms_size % 8 == 0 &&
                    round_up(hit.key_size, 8) + round_up(hit.value_size, 8) + hit.terms_size <=
                        end - extent;
  std::atomic_thread_fence(acquire);
  if (r.state.load(relaxed) != state) return Status::kBusy;
  if (!fits) return Status::kCorrupt;
  hit.extent = segment_.heap() + extent / 8;
  return Status::kOk;
}

bool Table::still(const Hit& hit) const {
  const Meta& m = segment_.meta();
  // The root first: what is found after it was so when it was loaded, or later.
  if (m.root.load(acquire) != hit.root) return false;
  const uint64_t word = segment_.index(Root::unpack(hit.root).area)[hit.slot].load(acquire);
  return word != kTombstone && record_of(word) == hit.record &&
         record(hit.record).state.load(acquire) == hit.state;
}

bool Table::read_key(const Hit& hit, void* to) const {
  copy_out(to, hit.extent, hit.key_size);
  std::atomic_thread_fence(acquire);
  return record(hit.record).state.load(relaxed) == hit.state;
}

bool Table::read_value(const Hit& hit, void* to) const {
  copy_out(to, hit.value(), hit.value_size);
  std::atomic_thread_fence(acquire);
  return record(hit.record).state.load(relaxed) == hit.state;
}

Status Table::find(const Key& key, Hit& hit) const {
  const Meta& m = segment_.meta();
  for (int tries = 0; tries < kReadTries; ++tries) {
    const uint64_t root_word = m.root.load(acquire);
    const Root root = Root::unpack(root_word);
    if (!committed(root)) {
      if (m.root.load(relaxed) != root_word) continue;
      return Status::kCorrupt;
    }
    const std::atomic<uint64_t>* words = segment_.index(root.area);
    const uint64_t mask = (uint64_t{1} << root.log2) - 1;
    uint64_t slot = key.hash & mask;
    bool again = false, damaged = false;
    int moved = 0;
    uint64_t steps = 0;
    while (steps <= mask) {
      const uint64_t word = words[slot].load(acquire);
      if (word == kEmptyWord) break;
      if (word != kTombstone && tag_matches(word, key.hash)) {
        const RecordNo number = record_of(word);
        if (!valid(number)) {
          damaged = true;
          break;
        }
        const Status status = peek(number, hit);
        if (status == Status::kCorrupt) {
          damaged = true;
          break;
        }
        bool changed = status == Status::kBusy;
        if (status == Status::kOk && state_of(hit.state) != State::kHeld &&
            hit.key_size == key.size && equals(hit.extent, key.data, key.size)) {
          std::atomic_thread_fence(acquire);
          changed = record(number).state.load(relaxed) != hit.state;
          if (!changed) {
            hit.root = root_word;
            hit.slot = slot;
            if (state_of(hit.state) == State::kLive || m.root.load(relaxed) == root_word) {
              return Status::kOk;
            }
            again = true;
            break;
          }
        } else if (!changed) {
          // FREE, HELD, or another key's. If the word has moved on meanwhile, its old record may long
          // have been given to that other key, and ours is where the word points now. The word
          // first, then the state: a word that came back names a state that did not.
          changed = words[slot].load(acquire) != word ||
                    record(number).state.load(relaxed) != hit.state;
        }
        if (changed) {
          if (++moved > kReadTries) return Status::kBusy;
          continue;  // the same slot again
        }
      }
      slot = (slot + 1) & mask;
      ++steps;
    }
    std::atomic_thread_fence(acquire);
    if (again || m.root.load(relaxed) != root_word) continue;
    if (damaged || steps > mask) return Status::kCorrupt;
    return Status::kMiss;
  }
  return Status::kBusy;
}

// --- writers ------------------------------------------------------------------------------------

bool Table::same_key(RecordNo number, const Key& key) const {
  const Record& r = record(number);
  if (r.hash.load(relaxed) != key.hash || r.key_size.load(relaxed) != key.size) return false;
  const uint64_t extent = raw(r.extent.load(relaxed)), end = heap_.committed();
  return extent <= end && round_up(key.size, 8) <= end - extent &&
         equals(segment_.heap() + extent / 8, key.data, key.size);
}

bool Table::same_value(RecordNo number, Bytes value) const {
  Hit hit;
  return peek(number, hit) == Status::kOk && hit.value_size == value.size &&
         equals(hit.value(), value.data, value.size);
}

bool Table::same_key(RecordNo a, RecordNo b) const {
  Hit x, y;
  if (record(a).hash.load(relaxed) != record(b).hash.load(relaxed) ||
      peek(a, x) != Status::kOk || peek(b, y) != Status::kOk || x.key_size != y.key_size) {
    return false;
  }
  for (uint64_t w = 0; w < round_up(x.key_size, 8) / 8; ++w) {
    if (load_word(x.extent + w) != load_word(y.extent + w)) return false;
  }
  return true;
}

bool Table::is(RecordNo number, Sought sought) const {
  const Record& r = record(number);
  const bool held = state_of(r.state.load(relaxed)) == State::kHeld;
  if (sought == Sought::kLive) return !held;
  if (!held) return false;
  const uint64_t txn = r.txn.load(relaxed);
  return sought == (txn == kDeadLetter ? Sought::kDead
                    : txn == kParkedKey   ? Sought::kParked
                                       : Sought::kInFlight);
}

// The record of `hash` that `matches`, or where a new word would go.
template <typename Matches>
Status Table::probe(const std::atomic<uint64_t>* words, uint32_t log2, uint64_t hash, Place& place,
                    Matches&& matches) const {
  const uint64_t mask = (uint64_t{1} << log2) - 1;
  uint64_t slot = hash & mask;
  bool tombstone = false;
  for (uint64_t steps = 0; steps <= mask; ++steps, slot = (slot + 1) & mask) {
    const uint64_t word = words[slot].load(relaxed);
    if (word == kEmptyWord) {
      if (!tombstone) place.slot = slot;
      place.reuses_tombstone = tombstone;
      place.record = kNoRecord;
      return Status::kOk;
    }
    if (word == kTombstone) {
      if (!tombstone) place.slot = slot;
      tombstone = true;
    } else if (tag_matches(word, hash)) {
      const RecordNo number = record_of(word);
      if (!valid(number)) return Status::kCorrupt;
      if (matches(number)) {
        place = {slot, number, false};
        return Status::kOk;
      }
    }
  }
  return Status::kCorrupt;  // an index is never full
}

Status Table::probe(const std::atomic<uint64_t>* words, uint32_t log2, const Key& key,
                    Place& place) const {
  return probe(words, log2, key.hash, place, [&](RecordNo number) {
    return same_key(number, key) && is(number, Sought::kLive);
  });
}

Status Table::locate_like(RecordNo like, Sought sought, RecordNo& found) const {
  Root r;
  if (Status s = root(r); s != Status::kOk) return s;
  Place place;
  const Status s = probe(
      segment_.index(r.area), r.log2, record(like).hash.load(relaxed), place, [&](RecordNo number) {
        return number != like && is(number, sought) && same_key(number, like);
      });
  found = place.record;
  return s;
}

Status Table::locate_held(const Key& key, Sought sought, RecordNo& found) const {
  Root r;
  if (Status s = root(r); s != Status::kOk) return s;
  Place place;
  const Status s =
      probe(segment_.index(r.area), r.log2, key.hash, place, [&](RecordNo number) {
        return is(number, sought) && same_key(number, key);
      });
  found = place.record;
  return s;
}

Ticket* Table::ticket(RecordNo number) const {
  const Record& r = record(number);
  const uint64_t extent = raw(r.extent.load(relaxed)), end = heap_.committed();
  const uint64_t size = r.value_size.load(relaxed);
  const uint64_t before = round_up(r.key_size.load(relaxed), 8) + round_up(size, 8);
  if (r.terms_size.load(relaxed) != sizeof(Ticket) || extent > end || size > end ||
      before + sizeof(Ticket) > end - extent) {
    return nullptr;
  }
  return reinterpret_cast<Ticket*>(segment_.heap() + (extent + before) / 8);
}

Status Table::locate(const Key& key, Place& place) const {
  Root r;
  if (Status s = root(r); s != Status::kOk) return s;
  return probe(segment_.index(r.area), r.log2, key, place);
}

Status Table::locate_in(const Spare& spare, const Key& key, Place& place) const {
  return probe(spare.words, spare.log2, key, place);
}

void Table::prefetch(const Spare& spare, uint64_t hash) const {
  const Root now = root();
  __builtin_prefetch(&segment_.index(now.area)[hash & ((uint64_t{1} << now.log2) - 1)]);
  __builtin_prefetch(&spare.words[hash & ((uint64_t{1} << spare.log2) - 1)], 1);
}

Status Table::place_in(const Spare& spare, uint64_t hash, RecordNo number) {
  const uint64_t mask = (uint64_t{1} << spare.log2) - 1;
  uint64_t slot = hash & mask;
  for (uint64_t steps = 0; spare.words[slot].load(relaxed) != kEmptyWord; ++steps) {
    if (steps == mask) return Status::kCorrupt;  // more records than were counted
    slot = (slot + 1) & mask;
  }
  spare.words[slot].store(index_word(hash, number), relaxed);  // published by publish_root
  return Status::kOk;
}

uint32_t Table::index_log2(uint64_t count) const {
  uint32_t log2 = std::max(root().log2, kIndexMinLog2);
  while (log2 < 63 && uint64_t{1} << (log2 - 1) < count) ++log2;
  return log2;
}

Status Table::clear_spare(uint32_t log2, Spare& spare) {
  const Geometry& g = segment_.geometry();
  Meta& m = segment_.meta();
  const Root now = root();
  if (log2 > g.index_max_log2) return Status::kArenaFull;
  const uint64_t had = m.index_committed.load(relaxed), bytes = uint64_t{8} << log2;
  if (bytes > had) {
    // Both areas always have the same size, so that a repair never has to ask for memory.
    if (segment_.committed() + 2 * (bytes - had) > segment_.capacity()) return Status::kArenaFull;
    for (uint64_t area : g.index) {
      if (Status s = segment_.commit(area + had, bytes - had); s != Status::kOk) return s;
    }
    m.index_committed.store(bytes, release);  // P5
  }
  spare.area = now.area ^ 1;
  spare.log2 = log2;
  spare.words = segment_.index(spare.area);
  // Readers that still hold this area believe nothing that they miss in it (table.hpp): whoever
  // sees a cleared word sees, by this fence, that the root has moved on.
  std::atomic_thread_fence(release);
  for (uint64_t i = 0; i < uint64_t{1} << log2; ++i) spare.words[i].store(kEmptyWord, relaxed);
  return Status::kOk;
}

void Table::publish_root(const Spare& spare, uint32_t indexes) {
  Meta& m = segment_.meta();
  m.root.store(Root{root().generation + 1, spare.log2, spare.area, indexes}.pack(), release);  // P3
}

Status Table::reserve_index(uint64_t count) {
  Meta& m = segment_.meta();
  Root now;
  if (Status s = root(now); s != Status::kOk) return s;
  const uint64_t live = m.live.load(relaxed) + m.held.load(relaxed);
  const uint64_t size = uint64_t{1} << now.log2;
  const uint64_t taken = live + m.tombstones.load(relaxed) + count;
  if (load_ok(taken, size)) return Status::kOk;
  Spare spare;
  Status status = clear_spare(index_log2(live + count), spare);
  if (status == Status::kArenaFull || status == Status::kNoSpace) {
    if (load_bearable(taken, size)) return Status::kOk;
    if (!load_bearable(live + count, size)) return status;
    status = clear_spare(now.log2, spare);  // the same size, without the tombstones
  }
  if (status != Status::kOk) return status;
  for (uint64_t i = 0, n = records_used(); i < n; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    const State state = state_of(record(number).state.load(relaxed));
    if (state == State::kLive || state == State::kHeld) {
      status = place_in(spare, record(number).hash.load(relaxed), number);
      if (status != Status::kOk) return status;
    }
  }
  publish_root(spare);
  m.tombstones.store(0, relaxed);
  return Status::kOk;
}

Status Table::take_record(RecordNo& number) {
  Meta& m = segment_.meta();
  number = m.free_record.load(relaxed);
  if (number != kNoRecord) {
    if (!valid(number) || state_of(record(number).state.load(relaxed)) != State::kFree) {
      return Status::kCorrupt;
    }
    m.free_record.store(record(number).next.load(relaxed), relaxed);
    return Status::kOk;
  }
  const uint64_t used = m.records_used.load(relaxed), had = m.records_committed.load(relaxed);
  if (used >= had) {
    const Geometry& g = segment_.geometry();
    uint64_t more = std::clamp(had / 4, kRecordsGrowLeast, kRecordsGrowMost);
    more = std::min(round_up(more, kRecordsGrowLeast), g.max_records - had);
    if (more == 0) return Status::kArenaFull;
    const uint64_t at = g.records + had * sizeof(Record);
    Status status = segment_.commit(at, more * sizeof(Record));
    if (status != Status::kOk && more > kRecordsGrowLeast) {
      more = kRecordsGrowLeast;
      status = segment_.commit(at, more * sizeof(Record));
    }
    if (status != Status::kOk) return status;
    m.records_committed.store(had + more, release);  // P5
  }
  number = RecordNo{static_cast<uint32_t>(used)};
  m.records_used.store(used + 1, release);
  return Status::kOk;
}

void Table::give_record(RecordNo number) {
  Meta& m = segment_.meta();
  record(number).next.store(m.free_record.load(relaxed), relaxed);
  m.free_record.store(number, relaxed);
}

Status Table::prepare(const Key& key, Bytes value, uint64_t terms_size, RecordNo& fresh) {
  HeapOffset extent;
  const uint64_t key_bytes = round_up(key.size, 8);
  const uint64_t most = segment_.geometry().heap_max;
  if (value.size > most || terms_size > most || terms_size > UINT32_MAX) return Status::kArenaFull;
  if (Status s = heap_.allocate(key_bytes + round_up(value.size, 8) + terms_size, extent);
      s != Status::kOk) {
    return s;
  }
  if (Status s = take_record(fresh); s != Status::kOk) {
    const Status undone = heap_.release(extent);
    return undone == Status::kOk ? s : undone;
  }
  uint64_t* to = segment_.heap() + raw(extent) / 8;
  copy_in(to, key.data, key.size);
  copy_in(to + key_bytes / 8, value.data, value.size);
  Record& r = record(fresh);
  r.hash.store(key.hash, relaxed);
  r.extent.store(extent, relaxed);
  r.value_size.store(value.size, relaxed);
  r.key_size.store(key.size, relaxed);
  r.terms_size.store(static_cast<uint32_t>(terms_size), relaxed);
  r.txn.store(0, relaxed);
  return Status::kOk;
}

Status Table::discard(RecordNo fresh) {
  Record& r = record(fresh);
  // A staged record of a replace that failed: FREE under a version that nobody else has.
  const uint64_t state = r.state.load(relaxed);
  r.state.store(make_state(version_of(state), State::kFree), release);
  r.txn.store(0, relaxed);
  std::atomic_thread_fence(release);  // P1, as in retire
  const Status status = heap_.release(r.extent.load(relaxed));
  give_record(fresh);
  return status;
}

uint64_t Table::bytes_of(RecordNo number) const {
  return heap_.used_block(record(number).extent.load(relaxed)) + sizeof(Record);
}

Status Table::publish(RecordNo fresh, const Place& place) {
  Meta& m = segment_.meta();
  Record& r = record(fresh);
  push_ring(fresh);
  r.state.store(make_state(next_version(), State::kLive), release);  // P1: the truth moves here
  segment_.index(root().area)[place.slot].store(index_word(r.hash.load(relaxed), fresh),
                                                release);  // P2
  m.used_bytes.store(m.used_bytes.load(relaxed) + bytes_of(fresh), relaxed);
  if (place.record != kNoRecord) {
    push_ring(place.record);
    return retire(place.record);
  }
  m.live.store(m.live.load(relaxed) + 1, relaxed);
  if (place.reuses_tombstone) m.tombstones.store(m.tombstones.load(relaxed) - 1, relaxed);
  return Status::kOk;
}

Status Table::publish_held(RecordNo fresh, uint64_t txn) {
  Meta& m = segment_.meta();
  Record& r = record(fresh);
  Root now;
  Place place;
  if (Status s = root(now); s != Status::kOk) return s;
  const uint64_t hash = r.hash.load(relaxed);
  const Status s = probe(segment_.index(now.area), now.log2, hash, place,
                         [](RecordNo) { return false; });
  if (s != Status::kOk) return s;
  r.txn.store(txn, relaxed);
  r.state.store(make_state(next_version(), State::kHeld), release);  // the truth moves
  segment_.index(now.area)[place.slot].store(index_word(hash, fresh), release);
  m.used_bytes.store(m.used_bytes.load(relaxed) + bytes_of(fresh), relaxed);
  m.held.store(m.held.load(relaxed) + 1, relaxed);
  if (place.reuses_tombstone) m.tombstones.store(m.tombstones.load(relaxed) - 1, relaxed);
  return Status::kOk;
}

Status Table::retire(RecordNo number) {
  Meta& m = segment_.meta();
  Record& r = record(number);
  m.used_bytes.store(m.used_bytes.load(relaxed) - bytes_of(number), relaxed);
  const uint64_t state = r.state.load(relaxed);
  r.state.store(make_state(version_of(state), State::kFree), release);
  r.txn.store(0, relaxed);
  // P1: whoever sees a later store into the extent also sees FREE.
  std::atomic_thread_fence(release);
  const Status status = heap_.release(r.extent.load(relaxed));
  give_record(number);
  return status;
}

void Table::clear_word(const Root& r, uint64_t slot) {
  Meta& m = segment_.meta();
  std::atomic<uint64_t>* words = segment_.index(r.area);
  const uint64_t mask = (uint64_t{1} << r.log2) - 1;
  uint64_t tombstones = m.tombstones.load(relaxed);
  if (words[(slot + 1) & mask].load(relaxed) != kEmptyWord) {
    words[slot].store(kTombstone, release);
    m.tombstones.store(tombstones + 1, relaxed);
    return;
  }
  words[slot].store(kEmptyWord, release);
  for (uint64_t i = (slot - 1) & mask; words[i].load(relaxed) == kTombstone; i = (i - 1) & mask) {
    words[i].store(kEmptyWord, release);
    --tombstones;
  }
  m.tombstones.store(tombstones, relaxed);
}

Status Table::erase(RecordNo number) {
  Meta& m = segment_.meta();
  Record& r = record(number);
  Root now;
  if (Status s = root(now); s != Status::kOk) return s;
  const std::atomic<uint64_t>* words = segment_.index(now.area);
  const uint64_t mask = (uint64_t{1} << now.log2) - 1, hash = r.hash.load(relaxed);
  const uint64_t wanted = index_word(hash, number);
  uint64_t slot = hash & mask;
  for (uint64_t steps = 0; words[slot].load(relaxed) != wanted; slot = (slot + 1) & mask) {
    if (words[slot].load(relaxed) == kEmptyWord || ++steps > mask) return Status::kCorrupt;
  }
  push_ring(number);
  // The truth moves first, then the index (layout.hpp, delete).
  const uint64_t state = r.state.load(relaxed);
  r.state.store(make_state(next_version(), State::kFree), release);
  clear_word(now, slot);
  std::atomic<uint64_t>& count = state_of(state) == State::kHeld ? m.held : m.live;
  count.store(count.load(relaxed) - 1, relaxed);
  return retire(number);
}

void Table::hold(RecordNo number) {
  Meta& m = segment_.meta();
  Record& r = record(number);
  (void)next_version();
  r.state.store(make_state(version_of(r.state.load(relaxed)), State::kHeld), release);
  m.live.store(m.live.load(relaxed) - 1, relaxed);
  m.held.store(m.held.load(relaxed) + 1, relaxed);
}

void Table::unhold(RecordNo number) {
  Meta& m = segment_.meta();
  Record& r = record(number);
  (void)next_version();
  // Under its old version: its content is that of then, so what a reader has of it is right again.
  r.state.store(make_state(version_of(r.state.load(relaxed)), State::kLive), release);
  m.live.store(m.live.load(relaxed) + 1, relaxed);
  m.held.store(m.held.load(relaxed) - 1, relaxed);
}

void Table::push_ring(RecordNo number) {
  const uint64_t entries = segment_.geometry().ring_entries;
  if (entries == 0) return;
  Meta& m = segment_.meta();
  const uint64_t at = m.ring_pos.load(relaxed);
  // Release: who reads this entry also sees that the ring has come so far (Arena::catch_up).
  segment_.ring()[at & (entries - 1)].store(raw(number), release);
  m.ring_pos.store(at + 1, release);
}

void Table::overflow_ring() {
  Meta& m = segment_.meta();
  m.ring_pos.store(m.ring_pos.load(relaxed) + segment_.geometry().ring_entries + 1, release);
}

}  // namespace shmcache
