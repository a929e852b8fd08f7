#include "heap.hpp"

#include <algorithm>
#include <bit>

#include "segment.hpp"

namespace shmcache {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;

constexpr uint64_t kFree = 1, kPrevFree = 2, kFlags = 15;
constexpr uint64_t kEndSize = 16, kMinBlock = 32;
constexpr uint64_t kNone = ~uint64_t{0};
constexpr uint64_t kGrowLeast = 64 << 10, kGrowMost = 4 << 20;
// Blocks of a request's own class may or may not fit; so many are looked at before growing.
constexpr int kSameClassTries = 32;
// One part in so many of the capacity is kept for records and index.
constexpr uint64_t kSmallPartsShare = 32;

struct SizeClass {
  uint32_t first, second;
};

constexpr SizeClass class_of(uint64_t size) {
  if (size < 256) return {0, static_cast<uint32_t>(size / 16)};
  const auto log2 = static_cast<uint32_t>(std::bit_width(size) - 1);
  return {log2 - 7, static_cast<uint32_t>(size >> (log2 - 4)) & 15};
}
static_assert(class_of(kMaxCapacity).first < kFirstLevels);

}  // namespace

uint64_t Heap::committed() const {
  return std::min(segment_.meta().heap_committed.load(std::memory_order_acquire),
                  segment_.geometry().heap_max);
}

uint64_t Heap::word(uint64_t offset) const { return load_word(segment_.heap() + offset / 8); }
void Heap::set_word(uint64_t offset, uint64_t value) {
  store_word(segment_.heap() + offset / 8, value);
}

uint64_t Heap::used_block(HeapOffset extent) const {
  const uint64_t block = raw(extent) - 8, end = committed();
  if (raw(extent) < 8 || block % 16 != 0 || block > end - kEndSize - kMinBlock) return 0;
  const uint64_t header = word(block), size = header & ~kFlags;
  if ((header & kFree) != 0 || size < kMinBlock || size > end - kEndSize - block) return 0;
  return size;
}

bool Heap::valid_free(uint64_t block) const {
  const uint64_t end = committed();
  if (block % 16 != 0 || block > end - kEndSize - kMinBlock) return false;
  const uint64_t header = word(block), size = header & ~kFlags;
  return (header & kFree) != 0 && size >= kMinBlock && size <= end - kEndSize - block;
}

// Marks [block, block + size) free, tells the next block, and puts it at the head of its list.
Status Heap::insert_free(uint64_t block, uint64_t size) {
  FreeLists& lists = segment_.meta().free_lists;
  const auto [first, second] = class_of(size);
  const uint32_t seconds = lists.second_bitmap[first].load(relaxed);
  const uint64_t head =
      (seconds >> second & 1) != 0 ? raw(lists.head[first][second].load(relaxed)) : kNone;
  if (head != kNone && !valid_free(head)) return Status::kCorrupt;
  set_word(block, size | kFree);  // neighbours of a free block are used: no PREV_FREE
  set_word(block + 8, head);
  set_word(block + 16, kNone);
  set_word(block + size - 8, size);
  set_word(block + size, word(block + size) | kPrevFree);
  if (head != kNone) set_word(head + 16, block);
  lists.head[first][second].store(HeapOffset{block}, relaxed);
  lists.second_bitmap[first].store(seconds | 1u << second, relaxed);
  lists.first_bitmap.store(lists.first_bitmap.load(relaxed) | uint64_t{1} << first, relaxed);
  lists.bytes.store(lists.bytes.load(relaxed) + size, relaxed);
  lists.blocks.store(lists.blocks.load(relaxed) + 1, relaxed);
  return Status::kOk;
}

Status Heap::unlink_free(uint64_t block, uint64_t size) {
  FreeLists& lists = segment_.meta().free_lists;
  const auto [first, second] = class_of(size);
  const uint64_t next = word(block + 8), prev = word(block + 16);
  if ((next != kNone && !valid_free(next)) || (prev != kNone && !valid_free(prev))) {
    return Status::kCorrupt;
  }
  if (next != kNone) set_word(next + 16, prev);
  if (prev != kNone) {
    set_word(prev + 8, next);
  } else {
    lists.head[first][second].store(HeapOffset{next}, relaxed);
    if (next == kNone) {
      const uint32_t seconds = lists.second_bitmap[first].load(relaxed) & ~(1u << second);
      lists.second_bitmap[first].store(seconds, relaxed);
      if (seconds == 0) {
        lists.first_bitmap.store(lists.first_bitmap.load(relaxed) & ~(uint64_t{1} << first),
                                 relaxed);
      }
    }
  }
  lists.bytes.store(lists.bytes.load(relaxed) - size, relaxed);
  lists.blocks.store(lists.blocks.load(relaxed) - 1, relaxed);
  return Status::kOk;
}

// A free block of at least `size`, still in its list. kMiss if there is none.
Status Heap::take_fit(uint64_t size, uint64_t& block) {
  const FreeLists& lists = segment_.meta().free_lists;
  // Any block of the class that `rounded` falls into is large enough.
  const uint64_t rounded =
      size < 256 ? size : size + (uint64_t{1} << (std::bit_width(size) - 5)) - 1;
  auto [first, second] = class_of(rounded);
  if (first < kFirstLevels) {
    uint32_t fits = lists.second_bitmap[first].load(relaxed) & ~uint32_t{0} << second;
    if (fits == 0) {
      const uint64_t above = lists.first_bitmap.load(relaxed) & ~uint64_t{0} << (first + 1);
      if (above != 0) {
        first = static_cast<uint32_t>(std::countr_zero(above));
        if (first >= kFirstLevels) return Status::kCorrupt;
        fits = lists.second_bitmap[first].load(relaxed);
      }
    }
    if (fits != 0) {
      second = static_cast<uint32_t>(std::countr_zero(fits));
      if (second >= kSecondLevels) return Status::kCorrupt;
      block = raw(lists.head[first][second].load(relaxed));
      if (!valid_free(block) || (word(block) & ~kFlags) < size) return Status::kCorrupt;
      return Status::kOk;
    }
  }
  const auto [own_first, own_second] = class_of(size);
  if ((lists.second_bitmap[own_first].load(relaxed) >> own_second & 1) == 0) return Status::kMiss;
  block = raw(lists.head[own_first][own_second].load(relaxed));
  for (int i = 0; i < kSameClassTries && block != kNone; ++i, block = word(block + 8)) {
    if (!valid_free(block)) return Status::kCorrupt;
    if ((word(block) & ~kFlags) >= size) return Status::kOk;
  }
  return Status::kMiss;
}

// Make the last block hold `size`, if it does not: commit more heap.
Status Heap::grow(uint64_t size) {
  const uint64_t old_end = committed(), end_mark = old_end - kEndSize;
  const bool last_is_free = (word(end_mark) & kPrevFree) != 0;
  const uint64_t last = last_is_free ? word(end_mark - 8) : 0;
  if (last > end_mark) return Status::kCorrupt;
  if (last >= size) return Status::kOk;  // take_fit looks at some blocks of a class, not at all
  const uint64_t least = round_up(size - last, kPage);
  // Committed memory is never given back, so the heap must not take it all: entries that are
  // smaller than those before need more records and index words.
  const Meta& m = segment_.meta();
  const uint64_t share = segment_.capacity() / kSmallPartsShare;
  const uint64_t have = m.records_committed.load(std::memory_order_relaxed) * sizeof(Record) +
                        2 * m.index_committed.load(std::memory_order_relaxed);
  const uint64_t keep = share - std::min(share, have);
  uint64_t bytes = std::max(least, std::clamp(old_end / 4, kGrowLeast, kGrowMost));
  bytes = round_up(bytes, kPage);
  if (old_end + bytes > segment_.geometry().heap_max) bytes = least;
  if (old_end + bytes > segment_.geometry().heap_max) return Status::kArenaFull;
  Status status = segment_.commit(segment_.geometry().heap + old_end, bytes, keep);
  if (status != Status::kOk && bytes > least) {
    bytes = least;
    status = segment_.commit(segment_.geometry().heap + old_end, bytes, keep);
  }
  if (status != Status::kOk) return status;
  segment_.meta().heap_committed.store(old_end + bytes, std::memory_order_release);
  // The old end mark becomes a used block over the new memory, and is then released.
  const uint64_t new_end = old_end + bytes;
  set_word(new_end - kEndSize, kEndSize);
  set_word(end_mark, bytes | (word(end_mark) & kPrevFree));
  return release(HeapOffset{end_mark + 8});
}

Status Heap::allocate(uint64_t payload, HeapOffset& extent) {
  if (payload > segment_.geometry().heap_max) return Status::kArenaFull;
  const uint64_t size = block_size(payload);
  uint64_t block = kNone;
  Status status = take_fit(size, block);
  if (status == Status::kMiss) {
    status = grow(size);
    if (status != Status::kOk) return status;
    // The grown memory is the last block: it fits, though its class may promise less.
    const uint64_t end_mark = committed() - kEndSize;
    block = end_mark - word(end_mark - 8);
    if (!valid_free(block) || (word(block) & ~kFlags) < size) return Status::kCorrupt;
  } else if (status != Status::kOk) {
    return status;
  }
  const uint64_t had = word(block) & ~kFlags;
  if (status = unlink_free(block, had); status != Status::kOk) return status;
  uint64_t used = had;
  if (had - size >= kMinBlock) {
    used = size;
    if (status = insert_free(block + size, had - size); status != Status::kOk) return status;
  } else {
    set_word(block + had, word(block + had) & ~kPrevFree);
  }
  set_word(block, used);
  extent = HeapOffset{block + 8};
  return Status::kOk;
}

Status Heap::release(HeapOffset extent) {
  uint64_t size = used_block(extent);
  if (size == 0) return Status::kCorrupt;
  uint64_t block = raw(extent) - 8;
  if ((word(block) & kPrevFree) != 0) {
    const uint64_t before = word(block - 8);
    if (before > block || !valid_free(block - before) ||
        (word(block - before) & ~kFlags) != before) {
      return Status::kCorrupt;
    }
    if (Status s = unlink_free(block - before, before); s != Status::kOk) return s;
    block -= before;
    size += before;
  }
  if (const uint64_t next = block + size; valid_free(next)) {
    const uint64_t more = word(next) & ~kFlags;
    if (Status s = unlink_free(next, more); s != Status::kOk) return s;
    size += more;
  }
  return insert_free(block, size);
}

Status Heap::rebuild(const std::vector<uint64_t>& starts) {
  FreeLists& lists = segment_.meta().free_lists;
  lists.first_bitmap.store(0, relaxed);
  lists.bytes.store(0, relaxed);
  lists.blocks.store(0, relaxed);
  for (std::atomic<uint32_t>& seconds : lists.second_bitmap) seconds.store(0, relaxed);
  const uint64_t end = committed(), end_mark = end - kEndSize;
  set_word(end_mark, kEndSize);
  uint64_t at = 0;  // everything below is rebuilt
  // A gap too small for a block is slack of the block before it: allocate made it so.
  auto close_gap = [&](uint64_t next) -> Status {
    if (next < at) return Status::kCorrupt;  // two extents overlap
    if (next > at) {
      if (next - at < kMinBlock) return Status::kCorrupt;
      return insert_free(at, next - at);
    }
    return Status::kOk;
  };
  for (uint64_t w = 0; w < starts.size(); ++w) {
    for (uint64_t bits = starts[w]; bits != 0; bits &= bits - 1) {
      const uint64_t block = (w * 64 + static_cast<uint64_t>(std::countr_zero(bits))) * 16;
      const uint64_t size = used_block(HeapOffset{block + 8});
      if (size == 0) return Status::kCorrupt;
      set_word(block, size);
      if (Status s = close_gap(block); s != Status::kOk) return s;
      at = block + size;
    }
  }
  return close_gap(end_mark);
}

HeapFigures Heap::figures() const {
  const FreeLists& lists = segment_.meta().free_lists;
  HeapFigures figures;
  figures.free_bytes = lists.bytes.load(relaxed);
  figures.free_blocks = lists.blocks.load(relaxed);
  const uint64_t firsts = lists.first_bitmap.load(relaxed) & ((uint64_t{1} << kFirstLevels) - 1);
  if (firsts == 0) return figures;
  const auto first = static_cast<uint32_t>(std::bit_width(firsts) - 1);
  const uint32_t seconds = lists.second_bitmap[first].load(relaxed) & ((1u << kSecondLevels) - 1);
  if (seconds == 0) return figures;
  const auto second = static_cast<uint32_t>(std::bit_width(seconds) - 1);
  // The largest is in this list, which is rarely longer than the first block that fits.
  uint64_t block = raw(lists.head[first][second].load(relaxed));
  for (int i = 0; i < kSameClassTries && valid_free(block); ++i, block = word(block + 8)) {
    figures.largest_free = std::max(figures.largest_free, word(block) & ~kFlags);
  }
  return figures;
}

}  // namespace shmcache
