// The lock for the length of a scope. A writer's guard has repaired what it found DIRTY; a
// reader's leaves it DIRTY for the next writer.
#pragma once

#include "arena.hpp"

namespace shmcache {

class Arena::Guard {
 public:
  // Look at status() first: not kOk means the lock is not held, or could not be repaired.
  Guard(Arena& arena, Hold hold, uint64_t deadline);
  ~Guard() { leave(); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

  Status status() const { return status_; }
  bool held() const { return held_; }
  // Whether the lock was DIRTY when it was taken.
  bool dirty() const { return found_.dirty; }

  // What a mutation ended with. After kCorrupt its steps are not all done: unlock leaves the
  // lock DIRTY, and repair decides.
  Status end(Status status) {
    if (status == Status::kCorrupt) clean_ = false;
    return status;
  }
  void leave();

 private:
  Arena& arena_;
  Acquired found_;
  Status status_ = Status::kOk;
  bool held_ = false;
  bool clean_ = false;
};

// REQUIRES: the lock is held for writing.
inline void add_to(std::atomic<uint64_t>& figure, uint64_t more) {
  figure.store(figure.load(std::memory_order_relaxed) + more, std::memory_order_relaxed);
}

}  // namespace shmcache
