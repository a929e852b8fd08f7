#include "bus_error.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

namespace shmcache {
namespace {

std::atomic<WatchedMap*> all_maps{nullptr};
struct sigaction previous {};

// Async-signal-safe: lock-free loads, mmap (a bare system call), stores.
bool replace_pages(uintptr_t address) {
  for (WatchedMap* map = all_maps.load(std::memory_order_acquire); map != nullptr;
       map = map->next) {
    const uintptr_t begin = map->begin.load(std::memory_order_acquire);
    const uintptr_t end = map->end.load(std::memory_order_relaxed);
    if (begin == 0 || address < begin || address >= end) continue;
    // All of it, not one page: a state that is half of the file and half of zeros is no state.
    void* at = mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return false;
    map->lost.store(true, std::memory_order_release);
    return true;
  }
  return false;
}

void on_bus_error(int number, siginfo_t* info, void* context) {
  const int error = errno;
  if (info->si_code > 0) {  // from the kernel, with an address
    if (replace_pages(reinterpret_cast<uintptr_t>(info->si_addr))) {
      errno = error;
      return;
    }
  } else if (info->si_code == SI_TKILL && info->si_pid == getpid()) {
    // A handler that was installed after ours (faulthandler's) has had its say, put ours back, and
    // raised the signal again. The access that failed runs again when it returns, and comes here
    // with its address.
    errno = error;
    return;
  }
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(number);
  } else {
    sigaction(number, &previous, nullptr);
    if (info->si_code <= 0) raise(number);  // nobody will touch a page again
  }
  errno = error;
}

void install() {
  struct sigaction ours {};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGBUS, &ours, &previous);
}

}  // namespace

WatchedMap* watch_map(void* begin, size_t size) {
  WatchedMap* first = all_maps.load(std::memory_order_relaxed);
  if (first == nullptr) install();
  WatchedMap* map = first;
  while (map != nullptr && map->begin.load(std::memory_order_relaxed) != 0) map = map->next;
  const bool made = map == nullptr;
  if (made) map = new WatchedMap;
  map->lost.store(false, std::memory_order_relaxed);
  map->end.store(reinterpret_cast<uintptr_t>(begin) + size, std::memory_order_relaxed);
  map->begin.store(reinterpret_cast<uintptr_t>(begin), std::memory_order_release);
  if (made) {
    map->next = first;
    all_maps.store(map, std::memory_order_release);
  }
  return map;
}

void unwatch_map(WatchedMap* map) { map->begin.store(0, std::memory_order_release); }

}  // namespace shmcache
