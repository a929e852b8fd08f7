// The checker: walks a whole arena and says which of the invariants I1 to I13 (layout.hpp) do
// not hold. Tests, crash tests and `shmcache check` all call it. It trusts nothing: every number
// it follows is bounded first. It stops adding sentences after kMost of them.
#include <algorithm>
#include <new>
#include <string>
#include <unordered_map>
#include <utility>

#include "arena.hpp"
#include "guard.hpp"

namespace shmcache {

class Verifier {
 public:
  Verifier(Segment& segment, Table& table, Timers& timers, Postings& postings,
           std::vector<std::string>& out)
      : segment_(segment), table_(table), timers_(timers), postings_(postings),
        meta_(segment.meta()), out_(out) {}

  void run() {
    watermarks();
    if (!out_.empty()) return;  // nothing beyond them may be touched
    records();
    index();
    heap();
    free_records();
    if (has_queue(segment_.kind())) queue();
    timers();
    if (segment_.kind() == Kind::kIndexer) postings();
    counters();
  }

 private:
  static constexpr size_t kMost = 50;
  static constexpr auto relaxed = std::memory_order_relaxed;

  void bad(const char* invariant, const std::string& what) {
    if (out_.size() < kMost) out_.push_back(std::string(invariant) + ": " + what);
  }
  static std::string n(uint64_t value) { return std::to_string(value); }

  void watermarks() {
    const Geometry& g = segment_.geometry();
    const Root root = table_.root();
    const uint64_t index = meta_.index_committed.load(relaxed);
    const uint64_t records = meta_.records_committed.load(relaxed);
    const uint64_t heap = meta_.heap_committed.load(relaxed);
    if (root.log2 > g.index_max_log2 || uint64_t{8} << root.log2 > index ||
        index > uint64_t{8} << g.index_max_log2 || index % kPage != 0) {
      bad("I10", "index watermark " + n(index) + " with 2^" + n(root.log2) + " words");
    }
    if (records > g.max_records || records * sizeof(Record) % kPage != 0) {
      bad("I10", "record watermark " + n(records));
    }
    if (heap > g.heap_max || heap % kPage != 0 || heap == 0) bad("I10", "heap watermark " + n(heap));
    if (segment_.committed() > segment_.capacity()) {
      bad("I10", "committed " + n(segment_.committed()) + " of " + n(segment_.capacity()));
    }
    if (meta_.records_used.load(relaxed) > records) bad("I10", "more records used than committed");
  }

  void records() {
    std::vector<uint64_t> versions;
    const uint64_t newest = meta_.version.load(relaxed);
    for (uint64_t i = 0; i < table_.records_used(); ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      const Record& r = table_.record(number);
      const uint64_t state = r.state.load(relaxed);
      if (version_of(state) > newest) bad("I8", "record " + n(i) + " is newer than the arena");
      if (state_of(state) == State::kStaged) bad("I3", "record " + n(i) + " is staged");
      if (state_of(state) == State::kFree || state_of(state) == State::kStaged) continue;
      used_bytes_ += table_.bytes_of(number);
      versions.push_back(version_of(state));
      if (state_of(state) == State::kHeld) {
        ++held_;
        if (!has_queue(segment_.kind())) bad("I12", "record " + n(i) + " is held");
        if (table_.is(number, Table::Sought::kParked) && segment_.kind() != Kind::kWorkQueue) {
          bad("I13", "record " + n(i) + " is parked");
        }
        continue;
      }
      ++live_;
      if (r.txn.load(relaxed) != 0) bad("I3", "record " + n(i) + " is doomed");
    }
    std::sort(versions.begin(), versions.end());
    if (std::adjacent_find(versions.begin(), versions.end()) != versions.end()) {
      bad("I8", "two live records have the same version");
    }
  }

  void index() {
    const Root root = table_.root();
    const std::atomic<uint64_t>* words = segment_.index(root.area);
    const uint64_t size = uint64_t{1} << root.log2;
    uint64_t named = 0, tombstones = 0, empty = 0;
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t word = words[i].load(relaxed);
      if (word == kEmptyWord) {
        ++empty;
      } else if (word == kTombstone) {
        ++tombstones;
      } else {
        ++named;
        const RecordNo r = record_of(word);
        if (!table_.valid(r) || !has_entry(r)) {
          bad("I1", "index word " + n(i) + " names record " + n(raw(r)) + ", which has no entry");
        }
      }
    }
    if (empty == 0) bad("I1", "the index is full");
    if (named != live_ + held_) {
      bad("I1", n(named) + " index words for " + n(live_ + held_) + " entries");
    }
    if (tombstones != meta_.tombstones.load(relaxed)) {
      bad("I8", n(tombstones) + " tombstones, counted " + n(meta_.tombstones.load(relaxed)));
    }
    // Each record is found by its own key, as the first of its path: I1 and I2 together.
    for (uint64_t i = 0; i < table_.records_used(); ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      Hit hit;
      if (!has_entry(number)) continue;
      if (table_.peek(number, hit) != Status::kOk || hit.key_size == 0) {
        bad("I4", "record " + n(i) + " names memory outside the heap");
        continue;
      }
      std::string text(hit.key_size, '\0');
      if (!table_.read_key(hit, text.data())) continue;
      const Key key = table_.key(text.data(), text.size());
      Table::Place place;
      if (key.hash != table_.record(number).hash.load(relaxed)) {
        bad("I1", "record " + n(i) + " has the hash of another key");
      } else if (locate(key, number, place.record) != Status::kOk || place.record != number) {
        bad("I2", "the key of record " + n(i) + " leads to record " + n(raw(place.record)));
      }
    }
  }

  void heap() {
    const Heap& heap = table_.heap();
    std::unordered_map<uint64_t, bool> extents;  // block of a live record -> seen in the heap
    for (uint64_t i = 0; i < table_.records_used(); ++i) {
      const Record& r = table_.record(RecordNo{static_cast<uint32_t>(i)});
      if (!has_entry(RecordNo{static_cast<uint32_t>(i)})) continue;
      if (!extents.emplace(raw(r.extent.load(relaxed)) - 8, false).second) {
        bad("I4", "two live records share an extent");
      }
    }
    const uint64_t end = heap.committed();
    std::unordered_map<uint64_t, uint64_t> free_blocks;
    bool before_free = false;
    uint64_t block = 0;
    while (block + 16 < end) {
      const uint64_t header = heap.word(block), size = header & ~uint64_t{15};
      const bool is_free = (header & 1) != 0;
      if (size < 32 || size > end - 16 - block) {
        bad("I4", "block at " + n(block) + " has size " + n(size));
        return;
      }
      if (((header & 2) != 0) != before_free) bad("I5", "flag of block at " + n(block));
      if (is_free) {
        if (before_free) bad("I5", "two free blocks meet at " + n(block));
        if (heap.word(block + size - 8) != size) bad("I5", "size mark of block at " + n(block));
        free_blocks.emplace(block, size);
      } else if (auto at = extents.find(block); at == extents.end()) {
        bad("I4", "block at " + n(block) + " belongs to nobody");
      } else {
        at->second = true;
      }
      before_free = is_free;
      block += size;
    }
    if (block + 16 != end || (heap.word(block) & ~uint64_t{15}) != 16) bad("I4", "no end mark");
    for (auto [at, seen] : extents) {
      if (!seen) bad("I4", "the extent at " + n(at) + " is not a block");
    }
    free_lists(free_blocks);
  }

  void free_lists(const std::unordered_map<uint64_t, uint64_t>& blocks) {
    const FreeLists& lists = meta_.free_lists;
    uint64_t listed = 0;
    for (uint32_t f = 0; f < kFirstLevels; ++f) {
      const uint32_t seconds = lists.second_bitmap[f].load(relaxed);
      if (((lists.first_bitmap.load(relaxed) >> f & 1) != 0) != (seconds != 0)) {
        bad("I5", "first bitmap at " + n(f));
      }
      for (uint32_t s = 0; s < kSecondLevels; ++s) {
        if ((seconds >> s & 1) == 0) continue;
        uint64_t at = raw(lists.head[f][s].load(relaxed)), prev = ~uint64_t{0};
        for (; at != ~uint64_t{0}; prev = at, at = table_.heap().word(at + 8)) {
          if (!blocks.contains(at) || ++listed > blocks.size()) {
            bad("I5", "free list " + n(f) + "," + n(s) + " leads to " + n(at));
            return;
          }
          if (table_.heap().word(at + 16) != prev) bad("I5", "back link of block at " + n(at));
        }
      }
    }
    if (listed != blocks.size()) {
      bad("I5", n(listed) + " of " + n(blocks.size()) + " free blocks are in a list");
    }
    uint64_t bytes = 0;
    for (auto [at, size] : blocks) bytes += size;
    if (lists.bytes.load(relaxed) != bytes || lists.blocks.load(relaxed) != blocks.size()) {
      bad("I5", "free memory is miscounted");
    }
  }

  void free_records() {
    const uint64_t used = table_.records_used();
    std::vector<bool> seen(used, false);
    uint64_t count = 0;
    for (RecordNo r = meta_.free_record.load(relaxed); r != kNoRecord;
         r = table_.record(r).next.load(relaxed)) {
      if (raw(r) >= used || seen[raw(r)] ||
          state_of(table_.record(r).state.load(relaxed)) != State::kFree) {
        bad("I6", "the free record list leads to record " + n(raw(r)));
        return;
      }
      seen[raw(r)] = true;
      ++count;
    }
    if (count + live_ + held_ != used) {
      bad("I6", n(count) + " free and " + n(live_ + held_) + " other records of " + n(used));
    }
  }

  void waiting(uint32_t priority, uint64_t& count) {
    const RecordList& list = meta_.waiting[priority];
    const uint64_t before = count;
    uint64_t last_seq = 0;
    RecordNo prev = kNoRecord;
    for (RecordNo r = list.head.load(relaxed); r != kNoRecord;) {
      if (!table_.valid(r) || ++count > live_) {
        bad("I7", "the queue leads to record " + n(raw(r)));
        return;
      }
      const Record& record = table_.record(r);
      if (state_of(record.state.load(relaxed)) != State::kLive) {
        bad("I7", "record " + n(raw(r)) + " is queued and not live");
      }
      RecordNo claimed = kNoRecord;
      if (table_.locate_like(r, Table::Sought::kInFlight, claimed) != Status::kOk ||
          claimed != kNoRecord) {
        bad("I7", "record " + n(raw(r)) + " is queued, and its key is in flight");
      }
      if (record.prev.load(relaxed) != prev) bad("I7", "back link of record " + n(raw(r)));
      const uint64_t seq = record.seq.load(relaxed);
      const Position position = Position::unpack(seq);
      if (position.priority != priority || position.time >= meta_.next_time.load(relaxed)) {
        bad("I7", "the position of record " + n(raw(r)));
      }
      if (seq <= last_seq) bad("I7", "record " + n(raw(r)) + " is out of order");
      last_seq = seq;
      prev = r;
      r = record.next.load(relaxed);
    }
    if (list.tail.load(relaxed) != prev) bad("I7", "the tail is not the last record");
    if (list.count.load(relaxed) != count - before ||
        (meta_.waiting_bitmap.load(relaxed) >> priority & 1) != (count != before)) {
      bad("I7", "the queue of priority " + n(priority) + " is miscounted");
    }
  }

  void queue() {
    uint64_t count = 0;
    for (uint32_t i = 0; i < kPriorities; ++i) waiting(i, count);
    uint64_t behind = 0;
    for (uint64_t i = 0; i < table_.records_used(); ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      RecordNo claimed = kNoRecord;
      if (state_of(table_.record(number).state.load(relaxed)) == State::kLive &&
          table_.locate_like(number, Table::Sought::kInFlight, claimed) == Status::kOk &&
          claimed != kNoRecord) {
        ++behind;
      }
    }
    if (count + behind != live_) {
      bad("I7", n(count) + " queued and " + n(behind) + " behind claims of " + n(live_) +
                    " live records");
    }
    if (meta_.waiting_count.load(relaxed) != count) bad("I7", "the queue is miscounted");
    held_list(meta_.in_flight, Table::Sought::kInFlight, "in flight");
    held_list(meta_.dead, Table::Sought::kDead, "a dead letter");
  }

  void held_list(const RecordList& list, Table::Sought sought, const std::string& what) {
    uint64_t count = 0, there = 0;
    RecordNo prev = kNoRecord;
    for (RecordNo r = list.head.load(relaxed); r != kNoRecord;) {
      if (!table_.valid(r) || ++count > held_ || !table_.is(r, sought)) {
        bad("I12", "a list leads to record " + n(raw(r)) + ", which is not " + what);
        return;
      }
      if (table_.record(r).prev.load(relaxed) != prev) bad("I12", "back link of record " + n(raw(r)));
      if (table_.ticket(r) == nullptr) bad("I12", "record " + n(raw(r)) + " has no ticket");
      prev = r;
      r = table_.record(r).next.load(relaxed);
    }
    for (uint64_t i = 0; i < table_.records_used(); ++i) {
      there += table_.is(RecordNo{static_cast<uint32_t>(i)}, sought) ? 1 : 0;
    }
    if (list.tail.load(relaxed) != prev || count != there || list.count.load(relaxed) != count) {
      bad("I12", n(count) + " of " + n(there) + " records are listed as " + what + ", counted " +
                     n(list.count.load(relaxed)));
    }
  }

  void timers() {
    if (segment_.kind() != Kind::kWorkQueue) return;
    uint64_t listed = 0, timed = 0;
    for (uint32_t i = 0; i < kTimerLists; ++i) {
      const RecordList& list = meta_.timers[i];
      uint64_t count = 0;
      RecordNo prev = kNoRecord;
      for (RecordNo r = list.head.load(relaxed); r != kNoRecord;) {
        const Ticket* ticket = table_.valid(r) && ++listed <= held_ ? table_.ticket(r) : nullptr;
        if (ticket == nullptr || !table_.is(r, Table::Sought::kParked)) {
          bad("I13", "the list of timers " + n(i) + " leads to record " + n(raw(r)));
          return;
        }
        const uint64_t due = ticket->deadline_ns.load(relaxed);
        if (due == 0 || timers_.list_of(Timers::tick_of(due)) != i) {
          bad("I13", "record " + n(raw(r)) + " is in the list of another time");
        }
        if (table_.record(r).prev.load(relaxed) != prev) {
          bad("I13", "back link of record " + n(raw(r)));
        }
        ++count;
        prev = r;
        r = table_.record(r).next.load(relaxed);
      }
      if (list.tail.load(relaxed) != prev || list.count.load(relaxed) != count) {
        bad("I13", "the list of timers " + n(i) + " is miscounted");
      }
      if (i != 0 && (meta_.timers_bitmap.load(relaxed) >> (i - 1) & 1) != (count != 0)) {
        bad("I13", "the bitmap of timers at " + n(i));
      }
    }
    for (uint64_t i = 0; i < table_.records_used(); ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      if (!table_.is(number, Table::Sought::kParked)) continue;
      const Ticket* ticket = table_.ticket(number);
      if (ticket == nullptr) bad("I13", "record " + n(i) + " has no ticket");
      timed += ticket != nullptr && ticket->deadline_ns.load(relaxed) != 0 ? 1 : 0;
    }
    if (timed != listed) bad("I13", n(listed) + " of " + n(timed) + " timers are in a list");
    if (meta_.next_due_ns.load(relaxed) != timers_.soonest_ns()) {
      bad("I13", "the time of the first timer is not that of the lists");
    }
  }

  bool has_entry(RecordNo number) const {
    const State state = state_of(table_.record(number).state.load(relaxed));
    return state == State::kLive || state == State::kHeld;
  }

  // The record of `key` that is what `number` is: LIVE, or HELD in the same way.
  Status locate(const Key& key, RecordNo number, RecordNo& found) const {
    for (auto sought :
         {Table::Sought::kInFlight, Table::Sought::kDead, Table::Sought::kParked}) {
      if (table_.is(number, sought)) return table_.locate_held(key, sought, found);
    }
    Table::Place place;
    const Status s = table_.locate(key, place);
    found = place.record;
    return s;
  }

  void postings() {
    std::unordered_map<uint64_t, bool> nodes;  // of live records -> seen in a list
    for (uint64_t i = 0; i < table_.records_used(); ++i) {
      const RecordNo number{static_cast<uint32_t>(i)};
      Hit hit;
      if (state_of(table_.record(number).state.load(relaxed)) != State::kLive ||
          table_.peek(number, hit) != Status::kOk) {
        continue;
      }
      if (!postings_.well_formed(number)) bad("I11", "index values of record " + n(i));
      for (NodeOffset node : postings_.nodes_of(hit)) nodes.emplace(raw(node), false);
    }
    uint64_t lists = 0, listed = 0;
    std::vector<std::vector<NodeOffset>> leaders(postings_.buckets());
    const Status walked = postings_.visit([&](uint64_t bucket, const std::vector<NodeOffset>& list) {
      ++lists;
      const NodeOffset leader = list.front();
      if (postings_.bucket_of(leader) != bucket) {
        bad("I11", "the list of node " + n(raw(leader)) + " is in bucket " + n(bucket));
      }
      for (NodeOffset other : leaders[bucket]) {
        if (postings_.same_term(leader, other)) bad("I11", "two lists of one value");
      }
      leaders[bucket].push_back(leader);
      for (NodeOffset node : list) {
        const auto known = nodes.find(raw(node));
        if (known == nodes.end()) {
          bad("I11", "node " + n(raw(node)) + " is listed and of no live record");
        } else if (std::exchange(known->second, true)) {
          bad("I11", "node " + n(raw(node)) + " is listed twice");
        } else {
          ++listed;
        }
        if (!postings_.same_term(leader, node)) {
          bad("I11", "node " + n(raw(node)) + " is in the list of another value");
        }
      }
    });
    if (walked != Status::kOk) bad("I11", "a list leads nowhere");
    if (listed != nodes.size()) {
      bad("I11", n(listed) + " of " + n(nodes.size()) + " index values are in a list");
    }
    if (lists != meta_.index_values.load(relaxed)) {
      bad("I11", n(lists) + " lists, counted " + n(meta_.index_values.load(relaxed)));
    }
  }

  void counters() {
    if (meta_.live.load(relaxed) != live_) {
      bad("I8", n(live_) + " live records, counted " + n(meta_.live.load(relaxed)));
    }
    if (meta_.held.load(relaxed) != held_) {
      bad("I8", n(held_) + " held records, counted " + n(meta_.held.load(relaxed)));
    }
    if (meta_.used_bytes.load(relaxed) != used_bytes_) {
      bad("I8", n(used_bytes_) + " used bytes, counted " + n(meta_.used_bytes.load(relaxed)));
    }
    if (meta_.mutation_seq.load(relaxed) % 2 != 0) bad("I9", "a mutation is half done");
  }

  Segment& segment_;
  Table& table_;
  Timers& timers_;
  Postings& postings_;
  Meta& meta_;
  std::vector<std::string>& out_;
  uint64_t live_ = 0, held_ = 0;
  uint64_t used_bytes_ = 0;
};

Status Arena::check(uint64_t deadline, std::vector<std::string>& violations) {
  Guard guard(*this, segment_->writable() ? Hold::kWrite : Hold::kRead, deadline);
  // What is too damaged to be repaired can still be described.
  const bool damaged = guard.held() && guard.status() == Status::kCorrupt;
  if (guard.status() != Status::kOk && !damaged) return guard.status();
  if (guard.dirty() && !segment_->writable()) {
    violations.push_back(
        "a writer died in the middle of a change; the next writable handle repairs it");
    return Status::kOk;
  }
  try {
    Verifier(*segment_, table_, timers_, postings_, violations).run();
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  }
  return Status::kOk;
}

}  // namespace shmcache
