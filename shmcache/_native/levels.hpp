// How deep an object is nested, by its msgpack bytes.
#pragma once

#include <cstdint>
#include <string_view>

namespace shmcache {

// Whether the object has more than `most` levels: the object itself is one, and what is in an
// array or a map is one more than it. `data` is one whole object, or the answer means nothing.
bool nested_deeper(std::string_view data, uint64_t most);

}  // namespace shmcache
