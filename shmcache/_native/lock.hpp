// The writer lock of an arena: one futex word that survives the death of its owner.
//
//   bit 0       WAITERS  somebody may sleep on the word
//   bit 1       DIRTY    a mutation may be half done: set for as long as a writer holds the lock
//   bits 2..31  owner    (slot + 1) << 17 | generation; 0 means nobody
//
//   free          0, or DIRTY alone: the next writer must repair first
//   held          owner | DIRTY by a writer, owner alone (DIRTY as found) by a reader
//
// Why not pthread: robust mutexes name their owner by a thread id that means another thread in
// another PID namespace, and keep raw pointers in shared memory.
//
// Death is what the kernel says: a waiter asks for the byte lock of the owner's slot (segment.hpp)
// before it sleeps, and again whenever its wait has run out (every kProbeNs). Held: the owner lives, perhaps stopped; it is never
// robbed, the waiter ends with kLockTimeout at its deadline. Free, or the slot has a later
// generation: the owner is dead, and the waiter moves the word from the dead owner's value to its
// own by one CAS, DIRTY kept. Of many such waiters one wins; if the winner dies the next does the
// same. A generation comes round after 2^17 owners of one slot; claim_slot skips the slot that
// the lock word names, so the word of a dead owner can never come to name a living one.
//
// Every wait is bounded by kProbeNs, so a wake-up that is lost with a process costs that much
// and no more. The lock is a leaf: under it no Python runs, nothing is called that may block but
// fallocate.
#pragma once

#include <cstdint>

#include "layout.hpp"
#include "status.hpp"

namespace shmcache {

class Segment;

constexpr uint32_t kLockWaiters = 1;
constexpr uint32_t kLockDirty = 2;
constexpr uint32_t kGenerationBits = 17;
constexpr uint32_t kGenerationMask = (1u << kGenerationBits) - 1;
constexpr uint64_t kProbeNs = 20'000'000;

constexpr uint32_t lock_owner(uint32_t word) { return word >> 2; }
static_assert((kOwnerSlots + 1) << kGenerationBits < (1u << 30));

enum class Hold : uint32_t {
  kRead = 0,             // looks, changes nothing: its death leaves nothing to repair
  kWrite = kLockDirty,
};

// What the new owner found.
struct Acquired {
  bool dirty = false;  // a writer died, or a repair did: the state is as a crash left it
};

// Take the lock if that needs no waiting. REQUIRES: the segment has a slot.
bool try_lock(Segment& segment, Hold hold, Acquired& found);
// Wait until `deadline_ns` (CLOCK_MONOTONIC). kOk, kLockTimeout, or kInterrupted by a signal.
Status lock(Segment& segment, Hold hold, uint64_t deadline_ns, Acquired& found);
// `clean`: the state is whole; false leaves it DIRTY for the next writer.
void unlock(Segment& segment, bool clean);

}  // namespace shmcache
