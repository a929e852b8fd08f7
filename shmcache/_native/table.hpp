// Records and the hash index over them: who has which key, found without a lock.
//
// The index is open addressing with linear probing over 64-bit words. Two areas exist; the root
// word names one. A word goes from empty to a record, from one record of a key to the next
// version of the same key (update: in place), to a tombstone, and back to empty. A tombstone
// becomes empty only when the word after it is empty: then no probe path crosses it, so a key
// that stays in the table is on an unbroken path at every instant.
//
// Readers (find): load root (P3), probe, load word (P2), load state (P1), compare tag, hash and
// key, load state again. Then:
//   * found LIVE and unchanged: the entry was current at the second load.
//   * found STAGED: the word can only be in an area that a replace published, if that area is
//     still the root: so root is loaded again, and the entry is committed.
//   * found FREE, or LIVE with another key, and then the word still names it and after that the
//     state is still the same: at the second load of the word it named this very record, so it is
//     not the word of our key (FREE: of a delete in progress, or of one that died). On to the
//     next. Without the second look at the word, an update could have moved it on and the freed
//     record been given to another key, and a key that is there would be missed.
//   * an empty word: absent, if root is unchanged. Otherwise the area may have been rebuilt under
//     the probe: again.
// A reader that holds an old area reads words of any age in it. That is harmless: a word leads to
// a record only through the checks above, and "absent" is not believed.
//
// Every loop is bounded: a probe by the size of the table, retries by kReadTries, after which the
// caller takes the lock (kBusy).
#pragma once

#include <cstdint>
#include <vector>

#include "heap.hpp"
#include "layout.hpp"
#include "status.hpp"

namespace shmcache {

class Segment;

struct Key {
  const char* data;
  uint32_t size;
  uint64_t hash;
};

inline bool key_size_ok(std::string_view key) { return !key.empty() && key.size() <= kMaxKeySize; }

struct Bytes {
  const void* data;
  uint64_t size;
};

// A record as a reader found it; good for as long as its state word is `state`.
struct Hit {
  RecordNo record = kNoRecord;
  uint64_t state = 0;
  uint64_t key_size = 0;
  uint64_t value_size = 0;
  uint64_t terms_size = 0;
  const uint64_t* extent = nullptr;
  uint64_t root = 0, slot = 0;  // by find: the index word that led here

  const uint64_t* value() const { return extent + round_up(key_size, 8) / 8; }
  const uint64_t* terms() const { return value() + round_up(value_size, 8) / 8; }
};

class Table {
 public:
  explicit Table(Segment& segment) : segment_(segment), heap_(segment) {}

  Key key(const char* data, uint64_t size) const;

  // --- readers, any time ---
  Status find(const Key& key, Hit& hit) const;
  // Whether the index word that led find here names the record still, in the same root, and the
  // record is the same: then the key is where it was, and find would end here again.
  bool still(const Hit& hit) const;
  // The entry of one record, LIVE or STAGED. kMiss: FREE. kBusy: it changed meanwhile.
  Status peek(RecordNo record, Hit& hit) const;
  // Copy what a hit names; false if the record has changed, the copy is then worthless.
  bool read_key(const Hit& hit, void* to) const;
  bool read_value(const Hit& hit, void* to) const;
  uint64_t records_used() const;

  // --- writers; REQUIRES: the lock is held for writing, the state is whole ---
  // The bracket of every change of content. Versions are counted privately in between and
  // published at the end: who is told of a version finds its change.
  void begin_mutation();
  void end_mutation();
  uint64_t next_version() { return ++version_; }
  void set_version(uint64_t version) { version_ = version; }
  // Whether the watermarks are within their regions (I10): nothing may be touched if not.
  bool watermarks_ok() const;

  struct Place {
    uint64_t slot = 0;               // where the key's word is or would go
    RecordNo record = kNoRecord;     // kNoRecord: absent
    bool reuses_tombstone = false;
  };
  // The LIVE (in a replace: STAGED) record of a key, never a HELD one.
  Status locate(const Key& key, Place& place) const;
  // A record with the key of `like`: LIVE, or HELD in one of three ways; not `like` itself.
  enum class Sought { kLive, kInFlight, kDead, kParked };
  Status locate_like(RecordNo like, Sought sought, RecordNo& found) const;
  Status locate_held(const Key& key, Sought sought, RecordNo& found) const;
  bool is(RecordNo record, Sought sought) const;
  // Make room in the index for `count` more words. May publish a new index: locate again.
  Status reserve_index(uint64_t count);
  // A FREE record and an extent with this content, unpublished. All or nothing. `terms_size` bytes
  // after the payload are left for the caller to fill.
  Status prepare(const Key& key, Bytes value, uint64_t terms_size, RecordNo& fresh);
  Status discard(RecordNo fresh);
  // prepare's record goes live in place of `place.record`, or as a new key.
  Status publish(RecordNo fresh, const Place& place);
  // prepare's record goes HELD, beside whatever has its key. REQUIRES: reserve_index.
  Status publish_held(RecordNo fresh, uint64_t txn);
  // LIVE or HELD record out of the index and back to the free lists.
  Status erase(RecordNo record);
  // LIVE to HELD, HELD to LIVE.
  void hold(RecordNo record);
  void unhold(RecordNo record);
  // Of an entry of a FIFO; null if its extent cannot be.
  Ticket* ticket(RecordNo record) const;
  // State to FREE and memory back; the index has let go of it already.
  Status retire(RecordNo record);
  bool same_value(RecordNo record, Bytes value) const;
  bool same_key(RecordNo record, const Key& key) const;

  // --- whole-table work (replace, repair) ---
  // The area that root does not name, empty. Nobody believes it before publish_root.
  struct Spare {
    std::atomic<uint64_t>* words;
    uint32_t log2;
    uint32_t area;
  };
  // The size that an index of `count` words should have: never less than it has now.
  uint32_t index_log2(uint64_t count) const;
  Status clear_spare(uint32_t log2, Spare& spare);
  // Where `key` is or would go in the spare area.
  // Have the words of `hash` in both areas come into the cache.
  void prefetch(const Spare& spare, uint64_t hash) const;
  Status locate_in(const Spare& spare, const Key& key, Place& place) const;
  static Status place_in(const Spare& spare, uint64_t hash, RecordNo record);
  void publish_root(const Spare& spare) { publish_root(spare, root().indexes); }
  void publish_root(const Spare& spare, uint32_t indexes);

  Root root() const;
  // The root, if it names an area that is committed.
  Status root(Root& root) const;
  Record& record(RecordNo r) const;
  bool valid(RecordNo r) const;
  uint64_t bytes_of(RecordNo r) const;  // heap block and record
  Heap& heap() { return heap_; }
  const Heap& heap() const { return heap_; }
  void push_ring(RecordNo r);
  void overflow_ring();

 private:
  bool committed(const Root& root) const;
  template <typename Matches>
  Status probe(const std::atomic<uint64_t>* words, uint32_t log2, uint64_t hash, Place& place,
               Matches&& matches) const;
  Status probe(const std::atomic<uint64_t>* words, uint32_t log2, const Key& key,
               Place& place) const;
  bool same_key(RecordNo a, RecordNo b) const;
  Status take_record(RecordNo& r);
  void give_record(RecordNo r);
  void clear_word(const Root& root, uint64_t slot);

  Segment& segment_;
  Heap heap_;
  uint64_t version_ = 0;  // of the mutation that runs; private to the lock's owner
};

}  // namespace shmcache
