#include "lock.hpp"

#include <algorithm>

#include "futex.hpp"
#include "segment.hpp"

namespace shmcache {
namespace {

// A critical section is some hundred nanoseconds; a futex round trip some microseconds.
constexpr int kSpins = 64;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr uint32_t held_by(uint32_t owner, Hold hold, uint32_t found) {
  return owner << 2 | static_cast<uint32_t>(hold) | (found & kLockDirty);
}

}  // namespace

bool try_lock(Segment& segment, Hold hold, Acquired& found) {
  std::atomic<uint32_t>& word = segment.control().lock;
  uint32_t seen = word.load(std::memory_order_relaxed);
  if (lock_owner(seen) != 0) return false;
  // Who takes the lock past sleepers keeps WAITERS, so that they are woken when it leaves.
  const uint32_t ours = held_by(segment.owner_id(), hold, seen) | (seen & kLockWaiters);
  if (!word.compare_exchange_strong(seen, ours, std::memory_order_acquire,
                                    std::memory_order_relaxed)) {
    return false;
  }
  found.dirty = (seen & kLockDirty) != 0;
  return true;
}

Status lock(Segment& segment, Hold hold, uint64_t deadline_ns, Acquired& found) {
  if (Status s = segment.claim_slot(); s != Status::kOk) return s;
  for (int i = 0; i < kSpins; ++i) {
    if (try_lock(segment, hold, found)) return Status::kOk;
    pause_cpu();
  }
  std::atomic<uint32_t>& word = segment.control().lock;
  const uint32_t owner = segment.owner_id();
  // Before the first sleep too: the long dead cost no wait, and a waiter whose sleeps are cut short
  // by signals, so that it comes here anew each time, finds them as well.
  bool probe = true;
  for (;;) {
    uint32_t seen = word.load(std::memory_order_relaxed);
    const bool dead = probe && lock_owner(seen) != 0 && !segment.owner_alive(lock_owner(seen));
    probe = false;
    if (lock_owner(seen) == 0 || dead) {
      // WAITERS set without knowing: others may still sleep, and one needless wake is cheap.
      if (word.compare_exchange_strong(seen, held_by(owner, hold, seen) | kLockWaiters,
                                       std::memory_order_acquire, std::memory_order_relaxed)) {
        found.dirty = (seen & kLockDirty) != 0;
        return Status::kOk;
      }
      continue;
    }
    const uint64_t now = now_ns();
    if (now >= deadline_ns) return Status::kLockTimeout;
    if ((seen & kLockWaiters) == 0 &&
        !word.compare_exchange_strong(seen, seen | kLockWaiters, std::memory_order_relaxed)) {
      continue;
    }
    const int rc =
        futex_wait(word, seen | kLockWaiters, std::min(deadline_ns, now + kProbeNs));
    if (rc == EINTR) return Status::kInterrupted;
    probe = rc == ETIMEDOUT;
  }
}

void unlock(Segment& segment, bool clean) {
  std::atomic<uint32_t>& word = segment.control().lock;
  const uint32_t was = word.exchange(clean ? 0 : kLockDirty, std::memory_order_seq_cst);
  if ((was & kLockWaiters) != 0) futex_wake(word, 1);
}

}  // namespace shmcache
