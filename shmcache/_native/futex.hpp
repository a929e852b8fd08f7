// futex(2) on words that processes share, with absolute CLOCK_MONOTONIC deadlines.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>

namespace shmcache {

constexpr uint64_t kForever = ~uint64_t{0};

inline uint64_t clock_ns(clockid_t clock) {
  struct timespec t {};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}
inline uint64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }
// The time of the last tick, some milliseconds ago: a quarter of the price.
inline uint64_t coarse_now_ns() { return clock_ns(CLOCK_MONOTONIC_COARSE); }

// 0 woken (or spuriously), EAGAIN the word is not `expected`, ETIMEDOUT, EINTR.
// Not FUTEX_PRIVATE: the word is shared. WAIT_BITSET, because it alone takes absolute times.
inline int futex_wait(std::atomic<uint32_t>& word, uint32_t expected, uint64_t deadline_ns) {
  struct timespec t {};
  t.tv_sec = static_cast<time_t>(deadline_ns / 1000000000u);
  t.tv_nsec = static_cast<long>(deadline_ns % 1000000000u);
  const long rc = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, expected, &t, nullptr,
                          FUTEX_BITSET_MATCH_ANY);
  return rc == 0 ? 0 : errno;
}

// How many were woken.
inline long futex_wake(std::atomic<uint32_t>& word, int count) {
  return syscall(SYS_futex, &word, FUTEX_WAKE, count, nullptr, nullptr, 0);
}

}  // namespace shmcache
