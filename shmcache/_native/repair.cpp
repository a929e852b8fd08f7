// Repair: from the records' state words to a whole arena. Run by whoever gets a DIRTY lock.
//
// It may be killed at any instruction and is then run again, from the start, by the next one; so
// every step is either idempotent on the truth (a state word settled by the rule of layout.hpp
// settles to the same again) or works on derived state only. Readers go on throughout: the index
// is built in the spare area, whose memory is always committed, and published by one store; and
// records that lose (an older version of a key) die only after that, so a key that has been
// there all along is found in every read.
//
// Cost: one pass over the records (64 bytes each, in order), one random store per entry into the
// index, one bit per 16 bytes of heap.
#include <algorithm>
#include <climits>
#include <new>

#include "arena.hpp"
#include "futex.hpp"

namespace shmcache {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;
constexpr auto release = std::memory_order_release;

// One bit per 16 bytes of heap: where the blocks of LIVE records begin.
class BlockStarts {
 public:
  explicit BlockStarts(uint64_t heap_bytes) : words_(heap_bytes / 16 / 64 + 1, 0) {}

  bool set(HeapOffset extent) {  // false if it was set
    auto [word, bit] = at(extent);
    const bool fresh = (word & bit) == 0;
    word |= bit;
    return fresh;
  }
  void clear(HeapOffset extent) {
    auto [word, bit] = at(extent);
    word &= ~bit;
  }
  const std::vector<uint64_t>& words() const { return words_; }

 private:
  struct Bit {
    uint64_t& word;
    uint64_t bit;
  };
  Bit at(HeapOffset extent) {
    const uint64_t granule = (raw(extent) - 8) / 16;
    return {words_[granule / 64], uint64_t{1} << (granule % 64)};
  }

  std::vector<uint64_t> words_;
};

void kill(Record& r) {
  r.state.store(make_state(version_of(r.state.load(relaxed)), State::kFree), release);
  r.txn.store(0, relaxed);
}

}  // namespace

// Kill LIVE and HELD records whose extents overlap that of an earlier one; whether there were any.
bool Arena::drop_overlapping() {
  struct Extent {
    uint64_t begin, end;
    RecordNo record;
  };
  std::vector<Extent> extents;
  for (uint64_t i = 0, n = table_.records_used(); i < n; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    const Record& r = table_.record(number);
    if (state_of(r.state.load(relaxed)) == State::kFree) continue;
    const HeapOffset extent = r.extent.load(relaxed);
    extents.push_back({raw(extent), raw(extent) + table_.heap().used_block(extent), number});
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  uint64_t end = 0, dropped = 0;
  for (const Extent& extent : extents) {
    if (extent.begin < end) {
      kill(table_.record(extent.record));
      ++dropped;
    } else {
      end = extent.end;
    }
  }
  Meta& m = segment_->meta();
  m.dropped_records.store(m.dropped_records.load(relaxed) + dropped, relaxed);
  return dropped != 0;
}

Status Arena::repair_locked() try {
  const uint64_t started = now_ns();
  Meta& m = segment_->meta();
  const bool fifo = has_queue(segment_->kind());
  const bool indexer = segment_->kind() == Kind::kIndexer;
  const bool first = m.mutation_seq.load(relaxed) == 0;  // a new arena is formatted, not repaired
  Root root;
  Heap& heap = table_.heap();
  const uint64_t used = table_.records_used();
  if (Status s = table_.root(root); s != Status::kOk) return s;

  struct Placed {
    uint64_t seq;
    RecordNo record;
  };
  std::vector<Placed> order, claims;
  std::vector<RecordNo> timed;
  std::vector<RecordNo> losers;
  BlockStarts starts(heap.committed());

  // 1. The truth: settle what a replace left, drop what is damaged.
  uint64_t version = m.version.load(relaxed), live = 0, held = 0, dropped = 0;
  for (uint64_t i = 0; i < used; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    Record& r = table_.record(number);
    const uint64_t state = r.state.load(relaxed);
    version = std::max(version, version_of(state));
    if (state_of(state) == State::kFree) continue;
    const bool is_held = state_of(state) == State::kHeld;
    const bool parked = is_held && r.txn.load(relaxed) == kParkedKey;
    if (is_held ? !fifo || (parked && segment_->kind() != Kind::kWorkQueue) : !truly_live(r)) {
      kill(r);
      continue;
    }
    if (!is_held) r.txn.store(0, relaxed);  // before LIVE: a LIVE record with its txn would be doomed
    if (state_of(state) == State::kStaged) {
      r.state.store(make_state(version_of(state), State::kLive), release);
    }
    const uint64_t key_size = r.key_size.load(relaxed), value_size = r.value_size.load(relaxed);
    const HeapOffset extent = r.extent.load(relaxed);
    const uint64_t block = heap.used_block(extent);
    const uint64_t terms_size = r.terms_size.load(relaxed);
    const uint64_t need =
        Heap::block_size(round_up(key_size, 8) + round_up(value_size, 8) + terms_size);
    if (block == 0 || key_size == 0 || key_size > kMaxKeySize ||
        value_size > segment_->geometry().heap_max || block < need || block - need >= 32 ||
        (indexer ? !postings_.well_formed(number) : terms_size != (fifo ? sizeof(Ticket) : 0)) ||
        !starts.set(extent)) {
      kill(r);
      ++dropped;
      continue;
    }
    ++(is_held ? held : live);
  }
  // Before the root moves on, or a replace that never happened would seem to be of the past.
  settle_replace(root.generation);

  // 2. A whole index in the spare area. The size it has is enough, by reserve_index and replace.
  Table::Spare spare;
  // (One word must stay empty; a half-done update is counted twice here and needs one word.)
  const uint32_t log2 =
      (live + held) >> root.log2 != 0 ? table_.index_log2(live + held) : root.log2;
  if (Status s = table_.clear_spare(log2, spare); s != Status::kOk) {
    return s;
  }
  const uint64_t mask = (uint64_t{1} << spare.log2) - 1;
  for (uint64_t i = 0; i < used; ++i) {
    const RecordNo number{static_cast<uint32_t>(i)};
    const Record& r = table_.record(number);
    const uint64_t state = r.state.load(relaxed);
    if (state_of(state) == State::kFree) continue;
    const uint64_t hash = r.hash.load(relaxed);
    uint64_t slot = hash & mask, steps = 0;
    RecordNo loser = kNoRecord;
    for (uint64_t word; (word = spare.words[slot].load(relaxed)) != kEmptyWord;
         slot = (slot + 1) & mask) {
      if (++steps > mask) return Status::kCorrupt;
      if (!tag_matches(word, hash)) continue;
      Hit a, b;
      const RecordNo other = record_of(word);
      // The newer version of what is claimed has its key.
      if (state_of(state) == State::kHeld || !table_.is(other, Table::Sought::kLive)) continue;
      if (table_.record(other).hash.load(relaxed) != hash ||
          table_.peek(number, a) != Status::kOk || table_.peek(other, b) != Status::kOk ||
          a.key_size != b.key_size) {
        continue;
      }
      bool same = true;
      for (uint64_t w = 0; same && w < round_up(a.key_size, 8) / 8; ++w) {
        same = load_word(a.extent + w) == load_word(b.extent + w);
      }
      if (!same) continue;
      // An update died between its two steps: the higher version wins.
      loser = version_of(a.state) > version_of(b.state) ? other : number;
      break;
    }
    if (loser != number) spare.words[slot].store(index_word(hash, number), relaxed);
    if (loser != kNoRecord) {
      losers.push_back(loser);
      starts.clear(table_.record(loser).extent.load(relaxed));
      --live;
    }
  }
  table_.publish_root(spare);
  for (RecordNo loser : losers) kill(table_.record(loser));
  // P1: nothing below is stored into an extent before its record is seen dead.
  std::atomic_thread_fence(release);

  // 3. Memory.
  RecordNo free_record = kNoRecord;
  uint64_t used_bytes = 0, last_time = 0, last_claim = m.claims.load(relaxed);
  for (uint64_t i = used; i-- > 0;) {
    const RecordNo number{static_cast<uint32_t>(i)};
    Record& r = table_.record(number);
    if (state_of(r.state.load(relaxed)) == State::kFree) {
      r.next.store(free_record, relaxed);
      free_record = number;
    } else {
      used_bytes += table_.bytes_of(number);
      if (fifo) {
        last_time = std::max(last_time, Position::unpack(r.seq.load(relaxed)).time);
        r.next.store(kNoRecord, relaxed);
        if (table_.is(number, Table::Sought::kLive)) {
          order.push_back({r.seq.load(relaxed), number});
        } else if (const Ticket& ticket = *table_.ticket(number);
                   table_.is(number, Table::Sought::kParked)) {
          if (ticket.deadline_ns.load(relaxed) != 0) timed.push_back(number);
        } else {
          const uint64_t claim = ticket.claim.load(relaxed);
          claims.push_back({claim, number});
          last_claim = std::max(last_claim, claim);
        }
      }
    }
  }
  m.free_record.store(free_record, relaxed);
  if (Status s = heap.rebuild(starts.words()); s != Status::kOk) {
    // Extents overlap: no crash does that, but another writer's stray store may. Drop those that
    // do, and begin again with what is left.
    return drop_overlapping() ? repair_locked() : s;
  }

  // 4. Order.
  if (fifo) {
    auto earlier = [](const Placed& a, const Placed& b) { return a.seq < b.seq; };
    std::sort(order.begin(), order.end(), earlier);
    std::sort(claims.begin(), claims.end(), earlier);
    queue_.clear_waiting();
    for (RecordList* list : {&m.in_flight, &m.dead}) Queue::clear(*list);
    for (const Placed& placed : claims) {
      const bool dead = table_.is(placed.record, Table::Sought::kDead);
      const Status s = queue_.push_tail(dead ? m.dead : m.in_flight, placed.record);
      if (s != Status::kOk) return s;
    }
    if (Status s = mark_behind(); s != Status::kOk) return s;
    for (const Placed& placed : order) {
      if (table_.record(placed.record).next.load(relaxed) == kBehindAClaim) continue;
      if (Status s = queue_.push_waiting(placed.record); s != Status::kOk) return s;
    }
    timers_.clear(now_ns());
    for (RecordNo number : timed) {
      if (Status s = timers_.add(number); s != Status::kOk) return s;
    }
    m.claims.store(last_claim, relaxed);
    m.next_reap_ns.store(0, relaxed);
    m.next_time.store(std::max(m.next_time.load(relaxed), last_time + 1), relaxed);
    note_drained();
  }

  // 5. Postings, in place: from here on nobody believes what they find in them (P4).
  if (indexer) {
    m.mutation_seq.store(m.mutation_seq.load(relaxed) | 1, relaxed);
    std::atomic_thread_fence(release);
    if (Status s = postings_.rebuild(); s != Status::kOk) return s;
  }

  // 6. Figures, and everybody looks again.
  m.live.store(live, relaxed);
  m.held.store(held, relaxed);
  m.tombstones.store(0, relaxed);
  m.used_bytes.store(used_bytes, relaxed);
  // One more than any: who waits at a version that a crash left behind is told to look again.
  m.version.store(first ? version : version + 1, release);
  m.dropped_records.store(m.dropped_records.load(relaxed) + dropped, relaxed);
  table_.overflow_ring();
  m.mutation_seq.store((m.mutation_seq.load(relaxed) | 1) + 1, release);
  if (!first) {
    m.repairs.store(m.repairs.load(relaxed) + 1, relaxed);
    m.last_repair_ns.store(now_ns() - started, relaxed);
  }
  Control& c = segment_->control();
  c.change_word.fetch_add(1);
  futex_wake(c.change_word, INT_MAX);
  c.ready_word.fetch_add(1);
  futex_wake(c.ready_word, INT_MAX);
  return Status::kOk;
} catch (const std::bad_alloc&) {
  return Status::kNoMemory;
}

}  // namespace shmcache
