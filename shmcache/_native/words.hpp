// Copies between private and shared memory, keyed hash, and small arithmetic.
//
// A reader may copy an extent while a writer that already gave it to somebody else stores into
// it. The bytes are thrown away (the record's state word has changed), but the accesses must
// still be atomic or they are a data race (undefined behaviour, and a TSan report). So every
// access of C++ to heap memory is a relaxed 64-bit load or store; the ordering comes from the
// state word (see layout.hpp). Heap areas are 8-byte aligned and padded, so a word copy never
// touches memory beyond its own extent.
//
// Long copies on x86-64 are one `rep movsq`, 2.5 times as fast. To the compiler an asm statement
// is opaque: there is no C++ access in it that could race, and with its "memory" clobber it stays
// between the fences and the accesses around it. To the processor:
//   * Nobody relies on a word of such a copy being whole: a copy is believed only if the state
//     word (or count) after it is what it was before, and then nobody stored meanwhile. What is
//     followed or compared while others may store (headers, links, index words, states) is loaded
//     and stored by load_word, store_word and std::atomic alone.
//   * The stores of one string instruction may become visible in any order among themselves, but
//     after all stores before it and before all stores after it (Intel SDM vol. 3A, "Fast-String
//     Operation and Out-of-Order Stores"): so after the release fence and FREE, before LIVE. Its
//     loads, as all loads of x86, are not reordered with other loads: so they are between the two
//     looks at the state. (Linux copies under its seqlocks with this instruction too.)
//   * A page that is missing (bus_error.hpp) interrupts it between two words; its registers then
//     say where, and it goes on from there.
// Sanitizers see C++ accesses only; built with one of them, all copies are by words. (Which they
// can judge: under TSan as races, under ASan the private side's bounds.)
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace shmcache {

constexpr uint64_t round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline uint64_t load_word(const uint64_t* from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }
inline void store_word(uint64_t* to, uint64_t value) {
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
// Below this many words the start of a string instruction costs more than it saves.
constexpr uint64_t kStringWords = 32;

inline void copy_string(void* to, const void* from, uint64_t words) {
  asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
}
#else
constexpr uint64_t kStringWords = ~uint64_t{0};

inline void copy_string(void*, const void*, uint64_t) {}
#endif

// Shared -> private: `size` bytes into `to`.
inline void copy_out(void* to, const uint64_t* from, uint64_t size) {
  auto* out = static_cast<unsigned char*>(to);
  const uint64_t words = size / 8;
  uint64_t i = 0;
  if (words >= kStringWords) {
    copy_string(to, from, words);
    i = words;
  }
  for (; i < words; ++i) {
    uint64_t word = load_word(from + i);
    std::memcpy(out + i * 8, &word, 8);
  }
  if (uint64_t rest = size % 8; rest != 0) {
    uint64_t word = load_word(from + words);
    std::memcpy(out + words * 8, &word, rest);
  }
}

// Private -> shared: `size` bytes; the padding of the last word becomes zero.
inline void copy_in(uint64_t* to, const void* from, uint64_t size) {
  const auto* in = static_cast<const unsigned char*>(from);
  const uint64_t words = size / 8;
  uint64_t i = 0;
  if (words >= kStringWords) {
    copy_string(to, from, words);
    i = words;
  }
  for (; i < words; ++i) {
    uint64_t word;
    std::memcpy(&word, in + i * 8, 8);
    store_word(to + i, word);
  }
  if (uint64_t rest = size % 8; rest != 0) {
    uint64_t word = 0;
    std::memcpy(&word, in + words * 8, rest);
    store_word(to + words, word);
  }
}

// Whether `size` shared bytes equal the private ones.
inline bool equals(const uint64_t* shared, const void* priv, uint64_t size) {
  const auto* in = static_cast<const unsigned char*>(priv);
  uint64_t words = size / 8;
  for (uint64_t i = 0; i < words; ++i) {
    uint64_t word;
    std::memcpy(&word, in + i * 8, 8);
    if (word != load_word(shared + i)) return false;
  }
  if (uint64_t rest = size % 8; rest != 0) {
    uint64_t word = load_word(shared + words);
    if (std::memcmp(&word, in + words * 8, rest) != 0) return false;
  }
  return true;
}

// SipHash-1-3 (Aumasson and Bernstein; the variant CPython uses for str): keyed, so that who
// cannot read the segment cannot make keys that collide in it.
class SipHash13 {
 public:
  SipHash13(uint64_t k0, uint64_t k1) : k0_(k0), k1_(k1) {}

  uint64_t operator()(const void* data, size_t size) const {
    uint64_t v0 = k0_ ^ 0x736f6d6570736575ull, v1 = k1_ ^ 0x646f72616e646f6dull;
    uint64_t v2 = k0_ ^ 0x6c7967656e657261ull, v3 = k1_ ^ 0x7465646279746573ull;
    const auto* in = static_cast<const unsigned char*>(data);
    const size_t words = size / 8;
    for (size_t i = 0; i < words; ++i) {
      uint64_t m;
      std::memcpy(&m, in + i * 8, 8);
      v3 ^= m;
      round(v0, v1, v2, v3);
      v0 ^= m;
    }
    uint64_t last = static_cast<uint64_t>(size) << 56, tail = 0;
    std::memcpy(&tail, in + words * 8, size % 8);
    last |= tail;
    v3 ^= last;
    round(v0, v1, v2, v3);
    v0 ^= last;
    v2 ^= 0xff;
    round(v0, v1, v2, v3);
    round(v0, v1, v2, v3);
    round(v0, v1, v2, v3);
    return v0 ^ v1 ^ v2 ^ v3;
  }

 private:
  static void round(uint64_t& v0, uint64_t& v1, uint64_t& v2, uint64_t& v3) {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  }

  uint64_t k0_, k1_;
};

static_assert(std::endian::native == std::endian::little, "the tail of SipHash is read as stored");

}  // namespace shmcache
