// Everything that lives in a segment: one file, one map of it, and the rules all others obey.
//
//   offset   region     size             mapped   written by
//   0        Header     one page         R / RW   the creator, once; `magic` last
//   4096     Control    fixed            RW       everybody (lock, owner slots, futex words)
//   ...      Meta       fixed            R / RW   the lock's owner; the report: the reflector
//   ...      names      one page         R / RW   the lock's owner            (Indexer)
//   ...      ring       u32[]            R / RW   the lock's owner            (not FIFO)
//   ...      index 0    u64[]  reserved  R / RW   the lock's owner
//   ...      index 1    u64[]  reserved  R / RW   the lock's owner
//   ...      buckets    u64[]  reserved  R / RW   the lock's owner            (Indexer)
//   ...      records    Record[] reserved R / RW  the lock's owner
//   ...      heap       blocks reserved  R / RW   the lock's owner
//
// "R / RW": data pages, which a read-only handle maps PROT_READ. "Reserved": address space and
// file offsets only. Pages are committed with fallocate before they are touched, and a watermark
// in Meta says how far; the sum of all committed bytes never passes `capacity`. The file is
// therefore longer than the capacity, and sparse. A map is made once and never moves.
//
// An entry is a *record* (64 bytes, one cache line, in a table whose cells are records for ever)
// and an *extent* (key, payload and, of an Indexer, index values, of a FIFO, a Ticket; in the
// heap). Because a record's memory is never anything but a record, its state word is always a
// state word: a reader that holds a stale record number reads a version that has moved on, never
// foreign bytes that look like one (no ABA).
//
// The state word of each record is the truth. Index, queue links, postings, free lists, heap
// headers, and counters are derived: repair rebuilds them from the records.
//
// Numbered invariants; they hold whenever the lock is free and not DIRTY. verify.cpp checks each,
// tests cite them.
//   I1  The index of the current root holds exactly one word for each LIVE or HELD record, on the
//       probe path of its hash, with its tag, and no other word but empty and tombstone.
//   I2  No two LIVE records have the same key, no two in flight, no two dead letters, no two parked.
//   I3  No record is STAGED, and no LIVE record is doomed (`txn` is 0).
//   I4  Every byte of the committed heap belongs to exactly one block; blocks that are not free
//       and not the end mark are the extents of LIVE and HELD records, one to one.
//   I5  No two neighbouring blocks are free; each free block is in the free list of its class,
//       and each list holds nothing else; the bytes and blocks in them are counted.
//   I6  Every FREE record below `records_used` is in the free record list once, nothing else is.
//   I7  FIFO: the list of its priority visits every LIVE record whose key is not in flight once, in
//       ascending `seq`; prev and next agree; they are counted, and the bitmap names the lists that
//       are not empty.
//   I8  `live`, `held`, `tombstones`, `used_bytes` count what is there; `version` is at least the
//       version of every record, and no two LIVE records have the same version.
//   I9  `mutation_seq` is even.
//   I10 committed watermarks are page multiples within their regions, and their sum is
//       at most the capacity.
//   I11 Indexer: each index value of each LIVE record is in the list of its index and value once,
//       and the lists hold nothing else (postings.hpp).
//   I12 FIFO: the list of those in flight visits every HELD record with `txn` 0 once, that of the
//       dead letters every one with `txn` kDeadLetter, and both are counted. Elsewhere nothing is
//       HELD.
//   I13 Work queue: each HELD record with `txn` kParkedKey that has a due time is in the list of that
//       time (timers.hpp) once, and these lists hold nothing else; the bitmap names those that are
//       not empty, and nothing is due before `next_due_ns`. Elsewhere nothing is parked.
//
// Order of every mutation (what a crash between two steps leaves is settled by repair):
//   add      extent and record fields; state = LIVE (the truth moves); index word; queue link
//   update   as add for the new record (same key, higher version, same queue position); index
//            word now names it; old state = FREE; old extent freed.
//            Crash between: two LIVE records of one key, the higher version wins.
//   delete   state = FREE (the truth moves); index word cleared; queue link; extent freed.
//   replace  new records STAGED with txn = g+1; LIVE records that go: txn = g+1 ("doomed");
//            a whole index in the spare area; then root = {g+1, spare}: the one store that moves
//            the truth for readers and for repair alike. STAGED with txn <= root generation is
//            LIVE, with a larger one FREE; doomed by txn <= generation is FREE, by a larger one
//            LIVE. Then each is settled: its txn to 0, then its state.
//   reindex  (more secondary indexes) a replace of every entry by itself with its new index
//            values; the root word also holds the number of indexes, so they appear with it.
//   claim    the ticket; state = HELD (the truth moves); lists.
//   done     state = FREE (the truth moves); index word cleared; lists; extent freed.
//   failed   the ticket counts it, once for a claim; then state = LIVE again, or `txn` =
//            kDeadLetter, or, where a newer version of the key waits, its seq and ticket first,
//            then state = FREE.
//   parked   (a work queue) `txn` = kParkedKey, then state = HELD, or for what was HELD the `txn`
//            alone; its due time is one store into its ticket. Due: seq; state = LIVE; `txn`.
//   growth   fallocate, then the watermark.
//
// Publish/observe pairs (release -> acquire); everything else is relaxed and says why:
//   P1  Record::state  writer's LIVE store -> reader's load: fields, key and payload are visible.
//       Second load after an acquire fence: if unchanged, nothing that was copied in between was
//       written after the record died (the writer stores FREE, release fence, before it reuses
//       the extent).
//   P2  index word     writer's store -> reader's load: the record is LIVE or STAGED-and-rooted.
//   P3  Meta::root     writer's store -> reader's load: the whole index area is visible.
//   P4  mutation_seq   odd while a mutation runs; the fences of a seqlock (Boehm, 2012).
//   P5  watermarks     store after fallocate -> load before the first touch.
//   P6  lock word      release by exchange -> acquire by CAS: all plain state under the lock.
//   P7  futex words    seq_cst: publish, fence, look for sleepers / announce sleep, fence, look
//       for work. One of the two sees the other.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "words.hpp"

namespace shmcache {

// Typed positions: a record number is not an offset is not a slot.
enum class RecordNo : uint32_t {};
enum class HeapOffset : uint64_t {};
enum class SlotIndex : uint32_t {};

constexpr uint32_t raw(RecordNo r) { return static_cast<uint32_t>(r); }
constexpr uint64_t raw(HeapOffset o) { return static_cast<uint64_t>(o); }
constexpr uint32_t raw(SlotIndex s) { return static_cast<uint32_t>(s); }

constexpr RecordNo kNoRecord{0xffffffffu};
constexpr RecordNo kBehindAClaim{0xfffffffeu};  // `next` of a LIVE record of a FIFO not queued

enum class Kind : uint32_t { kStore = 1, kFifo = 2, kIndexer = 3, kWorkQueue = 4 };
constexpr bool has_queue(Kind kind) { return kind == Kind::kFifo || kind == Kind::kWorkQueue; }

constexpr uint64_t kPage = 4096;
// Larger is sooner, 0 is usual. An item stands as if it had been queued kPriorityStepNs earlier for
// each: so a flood of urgent ones holds the others up for no longer than that.
constexpr uint32_t kPriorities = 8;
constexpr uint64_t kPriorityStepNs = 10'000'000'000;

constexpr uint64_t kMagic = 0x3165686361636d68;  // "hmcache1", the last store of a creation
constexpr uint32_t kLayoutVersion = 6;           // bump on any change of this file
constexpr uint64_t kMaxKeySize = 65535;
constexpr uint32_t kOwnerSlots = 2047;
constexpr size_t kCodecNameSize = 32;
constexpr uint64_t kMinCapacity = 256 << 10;
constexpr uint64_t kMaxCapacity = uint64_t{1} << 44;
constexpr uint32_t kIndexMinLog2 = 10;
constexpr size_t kResourceVersionSize = 240;
constexpr uint32_t kMaxIndexes = 32;
constexpr size_t kIndexNameSize = 128;  // with its end
constexpr uint64_t kMaxIndexValueSize = 65535;

// --- Header -----------------------------------------------------------------------------------
struct Header {
  std::atomic<uint64_t> magic;
  uint32_t layout_version;
  uint32_t page_size;
  Kind kind;
  uint32_t record_size;
  uint64_t capacity;
  uint64_t file_size;
  uint64_t hash_seed[2];
  uint64_t segment_id;  // random: tells a segment from a later one of the same name
  uint64_t created_unix_ns;
  uint64_t max_attempts;  // FIFO: claims of an item before it is a dead letter, 0 for any number
  char codec[kCodecNameSize];
};
static_assert(sizeof(Header) <= kPage);

// --- Control ----------------------------------------------------------------------------------
// Who may take the lock. A slot is owned by whoever holds the kernel's byte lock of its number;
// `generation` grows with every owner, so (slot, generation) names one owner for ever (17 bits
// are enough, see lock.hpp). `pid` and `pops` are for people.
struct OwnerSlot {
  std::atomic<uint32_t> generation;
  std::atomic<uint32_t> pid;
  std::atomic<uint64_t> pops;  // items that this owner has taken from the queue
};

// Slots are given out from number 0 on, and consumers write to theirs all the time: so slots of
// neighbouring numbers are in different cache lines.
constexpr uint32_t kSlotsPerLine = 64 / sizeof(OwnerSlot);
constexpr uint32_t kSlotLines = (kOwnerSlots + kSlotsPerLine - 1) / kSlotsPerLine;
constexpr uint32_t slot_position(uint32_t number) {
  return number % kSlotLines * kSlotsPerLine + number / kSlotLines;
}

struct Control {
  alignas(64) std::atomic<uint32_t> lock;  // lock.hpp
  // Sleepers that wait for any change of the store.
  alignas(64) std::atomic<uint32_t> change_word;
  std::atomic<uint32_t> change_sleepers;
  // Sleepers that wait for an item of the queue.
  alignas(64) std::atomic<uint32_t> ready_word;
  std::atomic<uint32_t> ready_sleepers;
  // Reads of all handles, read-only ones too. Each adds what it has counted by itself, now and then.
  alignas(64) std::atomic<uint64_t> reads;
  std::atomic<uint64_t> read_misses;  // those of them that had to decode
  alignas(64) OwnerSlot slots[kSlotLines * kSlotsPerLine];  // by slot_position
};

// --- Meta -------------------------------------------------------------------------------------
// Two-level segregated fit (Masmano et al., ECRTS 2004): class lists of free blocks.
constexpr uint32_t kFirstLevels = 38;
constexpr uint32_t kSecondLevels = 16;

struct FreeLists {
  std::atomic<uint64_t> first_bitmap;
  std::atomic<uint64_t> bytes, blocks;  // in all lists
  std::atomic<uint32_t> second_bitmap[kFirstLevels];
  std::atomic<HeapOffset> head[kFirstLevels][kSecondLevels];
};

// One of two: `resource_versions` counts them, its last bit names the current one, and the other
// is written before the count moves.
struct ResourceVersion {
  std::atomic<uint64_t> txn;  // root generation of the replace that wrote it; 0: of none
  std::atomic<uint64_t> claims;  // FIFO: given out until then
  std::atomic<uint64_t> size;
  uint64_t text[kResourceVersionSize / 8];
};

// What the reflector that fills the arena says of itself, once a second and at every change of
// its state. Times are CLOCK_MONOTONIC nanoseconds, 0 for never.
struct Report {
  uint64_t pid, state;
  uint64_t heartbeat_ns, contact_ns, event_ns, error_ns;
  uint64_t lists, watches, events, dropped, errors;
  char name[128];
  char last_error[256];
};
constexpr size_t kReportWords = sizeof(Report) / 8;
static_assert(sizeof(Report) % 8 == 0);

constexpr uint32_t kTimerLists = 65;

// A list of records, linked by their `prev` and `next`.
struct RecordList {
  std::atomic<RecordNo> head;
  std::atomic<RecordNo> tail;
  std::atomic<uint64_t> count;
};

struct Meta {
  // Read by every reader, written only by growth, rebuild, replace and unlink.
  alignas(64) std::atomic<uint64_t> root;  // Root: {generation, indexes, log2 of words, area}
  std::atomic<uint64_t> index_committed;   // bytes, of each of the two areas
  std::atomic<uint64_t> records_committed;  // records, not bytes
  std::atomic<uint64_t> heap_committed;     // bytes
  std::atomic<uint64_t> buckets_committed;  // bytes
  std::atomic<uint32_t> unlinked;           // the name was removed: perhaps others have it now
  // Written by every mutation.
  alignas(64) std::atomic<uint64_t> mutation_seq;  // P4
  std::atomic<uint64_t> version;
  std::atomic<uint64_t> ring_pos;  // entries ever pushed; the ring holds the last ring_entries
  std::atomic<uint64_t> live;
  std::atomic<uint64_t> tombstones;
  std::atomic<uint64_t> used_bytes;
  std::atomic<uint64_t> records_used;  // records ever handed out
  std::atomic<RecordNo> free_record;
  // The queue: a list for each priority (queue.hpp).
  alignas(64) std::atomic<uint64_t> waiting_count;    // in all of them
  std::atomic<uint64_t> waiting_bitmap;  // which of them are not empty
  std::atomic<uint64_t> next_time;       // of a position
  std::atomic<uint64_t> next_due_ns;     // of the timers: who looks for an item looks at both
  std::atomic<uint64_t> initial_last;    // time of the last of the first replace, 0 when all of it is gone
  std::atomic<uint32_t> shut_down;         // 0 open, 1 shut down
  std::atomic<uint32_t> populated;         // the first replace (FIFO: or add) has happened
  RecordList waiting[kPriorities];       // the first, which mostly is all, in the same line
  alignas(64) RecordList in_flight;
  RecordList dead;
  std::atomic<uint64_t> held;            // records
  std::atomic<uint64_t> claims;          // given out
  std::atomic<uint64_t> replaced_claims;  // those given out before the last replace are cancelled
  std::atomic<uint64_t> next_reap_ns;    // when to look for dead owners again
  // A work queue's parked records (timers.hpp), and its bucket of tokens (workqueue.cpp).
  alignas(64) std::atomic<uint64_t> timers_from;    // ticks
  std::atomic<uint64_t> timers_bitmap;  // of the lists 1 to 64, whether they are not empty
  std::atomic<uint64_t> bucket_full_ns;
  RecordList timers[kTimerLists];
  // Figures for people.
  alignas(64) std::atomic<uint64_t> writes;
  std::atomic<uint64_t> deletes;
  std::atomic<uint64_t> pops;
  std::atomic<uint64_t> repairs;
  std::atomic<uint64_t> last_repair_ns;
  std::atomic<uint64_t> dropped_records;  // records that repair found damaged
  std::atomic<uint64_t> index_values;     // lists of postings
  std::atomic<uint64_t> resource_versions;
  ResourceVersion resource_version[2];
  // Written by the holder of kReflectorByte alone; double like resource_version.
  alignas(64) std::atomic<uint64_t> reports;
  uint64_t report[2][kReportWords];
  alignas(64) FreeLists free_lists;
};

// --- Record -----------------------------------------------------------------------------------
// state word: version << 2 | State. A version is used once; FREE keeps the version of the death.
// HELD: an item that a consumer has claimed, a dead letter, or parked. No reader finds it.
enum class State : uint64_t { kFree = 0, kLive = 1, kStaged = 2, kHeld = 3 };
// `txn` of a dead letter, and of a parked record. To a LIVE record, which either is again by one
// store, they mean nothing: no generation is as large.
constexpr uint64_t kDeadLetter = ~uint64_t{0};
constexpr uint64_t kParkedKey = kDeadLetter - 1;

constexpr uint64_t make_state(uint64_t version, State s) {
  return version << 2 | static_cast<uint64_t>(s);
}
constexpr State state_of(uint64_t word) { return static_cast<State>(word & 3); }
constexpr uint64_t version_of(uint64_t word) { return word >> 2; }

struct alignas(64) Record {
  std::atomic<uint64_t> state;
  std::atomic<uint64_t> hash;
  std::atomic<HeapOffset> extent;  // offset in the heap of the key; the payload follows, padded
  std::atomic<uint64_t> value_size;
  std::atomic<uint32_t> key_size;
  std::atomic<RecordNo> next;  // LIVE: queue; FREE: free record list
  std::atomic<RecordNo> prev;  // LIVE: queue
  std::atomic<uint32_t> terms_size;  // bytes in the extent after the payload: index values, Ticket
  std::atomic<uint64_t> seq;  // queue position (Position)
  // STAGED: generation that makes it LIVE; LIVE: that dooms it; HELD: as above, or 0.
  std::atomic<uint64_t> txn;
};
static_assert(sizeof(Record) == 64, "one record, one cache line");
static_assert(kMaxIndexes * kIndexNameSize == kPage);

// A place in a queue as one number, the smaller the sooner: `time` << 3 | priority, the time that of
// its queueing plus what a more urgent item would be spared. No two are of one time.
struct Position {
  uint64_t time;
  uint32_t priority;

  static constexpr uint64_t spared(uint32_t priority) {
    return (kPriorities - 1 - priority) * kPriorityStepNs;
  }
  constexpr uint64_t pack() const { return (time + spared(priority)) << 3 | priority; }
  static constexpr Position unpack(uint64_t seq) {
    const auto priority = static_cast<uint32_t>(seq & (kPriorities - 1));
    const uint64_t time = seq >> 3, later = spared(priority);
    return {time < later ? 0 : time - later, priority};
  }
};

// --- Ticket -----------------------------------------------------------------------------------
// What a FIFO knows of the claims of an item, behind its payload. Written by the lock's owner only;
// all but `failures` mean something while the record is HELD.
struct Ticket {
  // How many claims of the item have failed, and << 16 the number of the last that did: so that a
  // failure that a crash interrupts is counted once.
  std::atomic<uint64_t> failures;
  std::atomic<uint64_t> claim;        // its number; none is given twice
  std::atomic<uint64_t> owner;        // whose it is (lock.hpp), 0 of nobody
  std::atomic<uint64_t> deadline_ns;  // of its lease; parked: when it is due; 0 if it has none
  std::atomic<uint64_t> cancelled;    // deleted meanwhile: a failure does not bring it back
  std::atomic<uint64_t> since_ns;     // when it was claimed, or became a dead letter; for people
};
constexpr uint64_t kFailuresMask = 0xffff;
static_assert(sizeof(Ticket) % 8 == 0);

// --- Index ------------------------------------------------------------------------------------
// index word: upper half of the hash << 32 | record number + 1. 0 is empty.
constexpr uint64_t kEmptyWord = 0;
constexpr uint64_t kTombstone = 0x00000000ffffffffull;  // record number 0xfffffffe: never used

constexpr uint64_t index_word(uint64_t hash, RecordNo r) {
  return (hash & 0xffffffff00000000ull) | (static_cast<uint64_t>(raw(r)) + 1);
}
constexpr bool tag_matches(uint64_t word, uint64_t hash) { return (word ^ hash) >> 32 == 0; }
constexpr RecordNo record_of(uint64_t word) {
  return RecordNo{static_cast<uint32_t>(word & 0xffffffffu) - 1};
}

// root word: generation << 16 | number of secondary indexes << 8 | log2 of words << 1 | area.
struct Root {
  uint64_t generation;
  uint32_t log2;
  uint32_t area;
  uint32_t indexes;

  static constexpr Root unpack(uint64_t word) {
    return {word >> 16, static_cast<uint32_t>(word >> 1 & 0x7f), static_cast<uint32_t>(word & 1),
            static_cast<uint32_t>(word >> 8 & 0xff)};
  }
  constexpr uint64_t pack() const {
    return generation << 16 | uint64_t{indexes} << 8 | uint64_t{log2} << 1 | area;
  }
};

// --- Geometry ---------------------------------------------------------------------------------
// Where the regions are: a pure function of (kind, capacity), worked out privately by every
// handle and never read from the segment.
struct Geometry {
  uint64_t control, meta, names, ring, index[2], buckets, records, heap, file_size;
  uint64_t ring_entries;    // a power of two, 0 for a FIFO
  uint64_t index_max_log2;  // words of an index area
  uint64_t buckets_max;     // bytes, 0 but for an Indexer
  uint64_t max_records;
  uint64_t heap_max;  // bytes

  static Geometry of(Kind kind, uint64_t capacity) {
    Geometry g{};
    const uint64_t entries = std::clamp<uint64_t>(capacity / 1024, 256, 65536);
    g.ring_entries = has_queue(kind) ? 0 : std::bit_floor(entries);
    // The least an entry takes is 64 + 32 + some index words; 96 bounds it from below.
    uint64_t records = capacity / 96;
    if (records > 0x7fffffffu) records = 0x7fffffffu;
    g.max_records = round_up(records, kPage / sizeof(Record));
    g.index_max_log2 = static_cast<uint64_t>(std::bit_width(g.max_records * 2 - 1));
    if (g.index_max_log2 < kIndexMinLog2) g.index_max_log2 = kIndexMinLog2;
    g.heap_max = round_up(capacity, kPage);
    g.control = kPage;
    g.meta = g.control + round_up(sizeof(Control), kPage);
    g.names = g.meta + round_up(sizeof(Meta), kPage);
    g.ring = g.names + (kind == Kind::kIndexer ? kMaxIndexes * kIndexNameSize : 0);
    g.index[0] = g.ring + round_up(g.ring_entries * sizeof(uint32_t), kPage);
    const uint64_t index_bytes = uint64_t{8} << g.index_max_log2;
    g.index[1] = g.index[0] + index_bytes;
    g.buckets = g.index[1] + index_bytes;
    g.buckets_max = kind == Kind::kIndexer ? index_bytes : 0;
    g.records = g.buckets + g.buckets_max;
    g.heap = g.records + g.max_records * sizeof(Record);
    g.file_size = g.heap + g.heap_max;
    return g;
  }
};

// Everything in shared memory is lock-free or it is not safe there.
static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::atomic<uint32_t>::is_always_lock_free);
static_assert(std::atomic<RecordNo>::is_always_lock_free && sizeof(std::atomic<RecordNo>) == 4);
static_assert(std::atomic<HeapOffset>::is_always_lock_free && sizeof(std::atomic<HeapOffset>) == 8);

}  // namespace shmcache
