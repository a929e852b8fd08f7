// The whole test framework of the core: CASE registers, CHECK counts, main runs by name.
#pragma once

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "arena.hpp"
#include "futex.hpp"

namespace harness {

struct Case {
  const char* name;
  const char* holds;  // one sentence
  std::function<void()> run;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, const char* holds, std::function<void()> run) {
    cases().push_back({name, holds, std::move(run)});
  }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  std::exit(1);
}

// A segment on memory without a name, gone with its descriptors.
inline int anonymous_file() {
  int fd = memfd_create("core-test", MFD_CLOEXEC);
  if (fd < 0 || fchmod(fd, 0600) != 0) fail(__FILE__, __LINE__, "memfd_create");
  return fd;
}

inline std::unique_ptr<shmcache::Arena> create(int fd, shmcache::Kind kind,
                                               uint64_t capacity = 64 << 20) {
  std::unique_ptr<shmcache::Segment> segment;
  shmcache::Finding finding;
  auto status = shmcache::Segment::create(fd, "/shmcache.core-test-has-no-name", kind, capacity,
                                          "raw", 0600, segment, finding);
  if (status != shmcache::Status::kOk) fail(__FILE__, __LINE__, "create");
  auto arena = std::make_unique<shmcache::Arena>(std::move(segment));
  const uint64_t deadline = shmcache::now_ns() + 10'000'000'000u;
  if (arena->settle(deadline) != shmcache::Status::kOk) fail(__FILE__, __LINE__, "settle");
  return arena;
}

inline std::unique_ptr<shmcache::Arena> attach(int fd, shmcache::Kind kind, bool writable = true) {
  std::unique_ptr<shmcache::Segment> segment;
  shmcache::Finding finding;
  auto status = shmcache::Segment::attach(fd, "/shmcache.core-test-has-no-name", kind, "raw",
                                          writable, shmcache::kNobody, segment, finding);
  if (status != shmcache::Status::kOk) fail(__FILE__, __LINE__, "attach");
  return std::make_unique<shmcache::Arena>(std::move(segment));
}

inline uint64_t soon() { return shmcache::now_ns() + 60'000'000'000u; }

inline std::vector<std::string> violations(shmcache::Arena& arena) {
  std::vector<std::string> found;
  if (arena.check(soon(), found) != shmcache::Status::kOk) found.push_back("check failed");
  return found;
}

inline void put(shmcache::Arena& arena, const std::string& key, const std::string& value) {
  bool wrote = false;
  if (arena.upsert({key, {value.data(), value.size()}}, shmcache::Upsert::kAlways, soon(), wrote) !=
          shmcache::Status::kOk ||
      !wrote) {
    fail(__FILE__, __LINE__, "put " + key);
  }
}

inline void drop(shmcache::Arena& arena, const std::string& key) {
  bool was_there = false;
  if (arena.erase(key, soon(), was_there) != shmcache::Status::kOk) {
    fail(__FILE__, __LINE__, "drop " + key);
  }
}

inline std::string value_of(shmcache::Arena& arena, const std::string& key) {
  shmcache::Item item;
  return arena.copy(key, soon(), item) == shmcache::Status::kOk ? std::string(item.value())
                                                                : "(absent)";
}

// A small fast generator: the harness must not depend on the library's distribution.
struct Random {
  uint64_t state;
  uint64_t operator()(uint64_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
  }
};

}  // namespace harness

#define CASE(name, holds)                                          \
  static void name();                                              \
  static const harness::Register name##_registered(#name, holds, name); \
  static void name()
#define CHECK(condition) \
  if (!(condition)) harness::fail(__FILE__, __LINE__, "not true: " #condition)
#define CHECK_WHOLE(arena)                                              \
  if (auto found = harness::violations(arena); !found.empty())         \
  harness::fail(__FILE__, __LINE__, "not whole: " + found.front())
