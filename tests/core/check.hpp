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
                                               uint64_t capacity = 64 << 20,
                                               const std::vector<std::string>& indexes = {}) {
  std::unique_ptr<shmcache::Segment> segment;
  shmcache::Finding finding;
  auto status = shmcache::Segment::create(fd, "/shmcache.core-test-has-no-name", kind, capacity,
                                          "raw", 0600, indexes, 0, segment, finding);
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

// "0=red 1=big" as index functions would have given it.
inline std::string packed(const std::string& terms) {
  std::string out;
  for (size_t at = 0; at < terms.size();) {
    const size_t end = std::min(terms.find(' ', at), terms.size());
    const auto index = static_cast<uint16_t>(terms[at] - '0');
    const auto size = static_cast<uint16_t>(end - at - 2);
    out.append(reinterpret_cast<const char*>(&index), 2);
    out.append(reinterpret_cast<const char*>(&size), 2);
    out.append(terms, at + 2, size);
    at = end + 1;
  }
  return out;
}

// An entry of an arena with two indexes. What it points to is the caller's.
inline shmcache::Entry entry(std::string_view key, std::string_view value,
                             std::string_view packed_terms, uint32_t indexes = 2) {
  shmcache::Entry made{key, {value.data(), value.size()}, packed_terms, 0, indexes};
  if (!shmcache::Postings::measure(packed_terms, indexes, made.terms_size)) {
    fail(__FILE__, __LINE__, "terms of " + std::string(key));
  }
  return made;
}

inline void put(shmcache::Arena& arena, const std::string& key, const std::string& value,
                const std::string& terms, uint32_t indexes = 2) {
  bool wrote = false;
  const std::string text = packed(terms);
  if (arena.upsert(entry(key, value, text, indexes), shmcache::Upsert::kAlways, soon(), wrote) !=
      shmcache::Status::kOk) {
    fail(__FILE__, __LINE__, "put " + key);
  }
}

// The keys of the entries with a value, sorted.
inline std::vector<std::string> keys_of(shmcache::Arena& arena, uint32_t index,
                                        std::string_view value) {
  std::vector<shmcache::Arena::Found> found;
  std::unordered_map<uint32_t, shmcache::Item> copies;
  if (arena.select(index, {value}, [](shmcache::RecordNo, uint64_t) { return true; }, false,
                   soon(), found, copies) != shmcache::Status::kOk) {
    fail(__FILE__, __LINE__, "select");
  }
  std::vector<std::string> keys;
  for (const auto& [record, item] : copies) keys.emplace_back(item.key());
  std::sort(keys.begin(), keys.end());
  return keys;
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
