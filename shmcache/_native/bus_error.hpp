// Maps that survive the loss of their pages.
//
// A peer that truncates the file of an arena, or memory that the kernel cannot give, makes the
// next touch of a missing page a SIGBUS, which would end whoever reads. The handler here lays
// private zero pages over the whole map that the address belongs to, notes that the map is lost,
// and lets the access go on. (libwayland does the same for buffers that clients share with it,
// wl_shm_buffer_begin_access.)
//
// What runs on over the zeros is bounded and believes nothing: a root word of 0 names no committed
// index, a state word of 0 is FREE, and watermarks of 0 are refused. What such a call returned is
// not believed either: the binding looks at lost() before it hands anything out.
//
// Any other SIGBUS goes to the handler that was there before. The handler is installed once, at
// the first map; who replaces it later without calling it gives this protection up.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace shmcache {

struct WatchedMap {
  std::atomic<uintptr_t> begin{0};  // 0: free for the next map; stored last
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> lost{false};
  WatchedMap* next = nullptr;  // written once, before the node is published
};

// REQUIRES, both: the caller serialises them. Nodes are used again and never freed, because the
// handler may walk them at any instant.
WatchedMap* watch_map(void* begin, size_t size);
void unwatch_map(WatchedMap* map);  // before munmap

}  // namespace shmcache
