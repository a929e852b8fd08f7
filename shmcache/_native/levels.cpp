#include "levels.hpp"

#include <vector>

namespace shmcache {

bool nested_deeper(std::string_view data, uint64_t most) {
  // Each level but the innermost takes the header of a container. Text has few of these bytes, so
  // mostly it is enough to count them: by blocks that a byte can count, which the compiler
  // vectorizes.
  uint64_t headers = 0;
  for (size_t block = 0; block < data.size(); block += 255) {
    unsigned char count = 0;
    for (char byte : data.substr(block, 255)) {
      const auto c = static_cast<unsigned char>(byte);
      count = static_cast<unsigned char>(count + ((c & 0xe0) == 0x80 || (c & 0xfc) == 0xdc));
    }
    headers += count;
  }
  if (headers < most) return false;

  std::vector<uint64_t> left{1};  // how many objects each level still has
  size_t at = 0;
  auto number = [&](size_t width) {  // big-endian, after the first byte
    uint64_t value = 0;
    for (size_t i = 1; i <= width && at + i < data.size(); ++i) {
      value = value << 8 | static_cast<unsigned char>(data[at + i]);
    }
    return value;
  };
  while (!left.empty()) {
    if (left.back() == 0) {
      left.pop_back();
      continue;
    }
    if (left.size() > most) return true;
    if (at >= data.size()) return false;
    --left.back();
    const unsigned char c = static_cast<unsigned char>(data[at]);
    uint64_t size = 1, inside = 0;
    if (c >= 0x80 && c <= 0x8f) inside = 2 * (c & 0x0fU);
    else if (c >= 0x90 && c <= 0x9f) inside = c & 0x0fU;
    else if (c >= 0xa0 && c <= 0xbf) size = 1 + (c & 0x1fU);
    else switch (c) {
      case 0xc4: case 0xd9: size = 2 + number(1); break;   // bytes, text: of 8,
      case 0xc5: case 0xda: size = 3 + number(2); break;   // 16,
      case 0xc6: case 0xdb: size = 5 + number(4); break;   // 32 bits of length
      case 0xc7: size = 3 + number(1); break;              // extensions
      case 0xc8: size = 4 + number(2); break;
      case 0xc9: size = 6 + number(4); break;
      case 0xcc: case 0xd0: size = 2; break;               // numbers
      case 0xcd: case 0xd1: size = 3; break;
      case 0xca: case 0xce: case 0xd2: size = 5; break;
      case 0xcb: case 0xcf: case 0xd3: size = 9; break;
      case 0xd4: size = 3; break;                          // extensions of a fixed size
      case 0xd5: size = 4; break;
      case 0xd6: size = 6; break;
      case 0xd7: size = 10; break;
      case 0xd8: size = 18; break;
      case 0xdc: size = 3; inside = number(2); break;
      case 0xdd: size = 5; inside = number(4); break;
      case 0xde: size = 3; inside = 2 * number(2); break;
      case 0xdf: size = 5; inside = 2 * number(4); break;
      default: break;                                      // one byte: small ints, nil, booleans
    }
    at += size;
    if (inside > 0) left.push_back(inside);
  }
  return false;
}

}  // namespace shmcache
