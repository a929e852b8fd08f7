// Extents: variable-sized pieces of memory for keys and payloads. TLSF (two-level segregated
// fit, Masmano et al. 2004): allocate and free in constant time, neighbours merged at once.
//
//   block at b (16-aligned)           b+8                                    b+size
//   used  | size | flags |  key, padded to 8 | payload, padded to 8 | slack |
//   free  | size | flags |  next | prev |            ...            | size  |
//   end   | 16   | flags |         (a used block of size 16 at committed - 16)
//
//   flags: bit 0 FREE, bit 1 PREV_FREE (the word at b-8 is then the size of the block before).
//   size: a multiple of 16, at least 32. HeapOffset names b+8.
//
// All of it is derived (layout.hpp): after a crash, `rebuild` makes it anew from the extents of
// the LIVE records. The header of a used block is written before its record goes LIVE and keeps
// its size for as long as the record lives, so rebuild may trust it once it fits.
//
// Who: only the lock's owner. Readers of stale extents may load any of these words at any time,
// so all accesses are relaxed atomic words (words.hpp). A link or size that points outside the
// committed heap, or at a block that is not free, is kCorrupt: nothing is followed unchecked.
#pragma once

#include <cstdint>
#include <vector>

#include "layout.hpp"
#include "status.hpp"

namespace shmcache {

class Segment;

struct HeapFigures {
  uint64_t free_blocks = 0;
  uint64_t free_bytes = 0;
  uint64_t largest_free = 0;
};

class Heap {
 public:
  explicit Heap(Segment& segment) : segment_(segment) {}

  // The block that an extent of `payload` bytes takes.
  static constexpr uint64_t block_size(uint64_t payload) {
    const uint64_t size = round_up(payload + 8, 16);
    return size < 32 ? 32 : size;
  }

  // REQUIRES, all below: the lock is held for writing.
  Status allocate(uint64_t payload, HeapOffset& extent);
  Status release(HeapOffset extent);
  // Size of the used block that holds `extent`, 0 if there is no such block.
  uint64_t used_block(HeapOffset extent) const;

  // Make everything anew: `starts` has a bit for each 16 bytes of the committed heap, set where
  // the block of a LIVE record begins.
  Status rebuild(const std::vector<uint64_t>& starts);
  // Needs no lock: each figure is of some instant, while somebody allocates not of the same one.
  // The largest is that of the first 32 blocks of the highest class.
  HeapFigures figures() const;

  uint64_t committed() const;
  uint64_t word(uint64_t offset) const;

 private:
  friend class Verifier;

  void set_word(uint64_t offset, uint64_t value);
  Status insert_free(uint64_t block, uint64_t size);
  Status unlink_free(uint64_t block, uint64_t size);
  bool valid_free(uint64_t block) const;
  Status take_fit(uint64_t size, uint64_t& block);
  Status grow(uint64_t size);

  Segment& segment_;
};

}  // namespace shmcache
