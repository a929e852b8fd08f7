// core_tests: runs every case, or those named; "--list" prints names and what they say holds.
#include <cstring>

#include "check.hpp"

int main(int argc, char** argv) {
  int ran = 0;
  for (const auto& c : harness::cases()) {
    if (argc > 1 && std::strcmp(argv[1], "--list") == 0) {
      std::printf("%s\t%s\n", c.name, c.holds);
      continue;
    }
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted = wanted || std::strcmp(argv[i], c.name) == 0;
    if (!wanted) continue;
    c.run();
    ++ran;
  }
  if (argc == 1 || ran > 0) std::printf("%d passed, 0 failed\n", ran);
  return argc > 1 && std::strcmp(argv[1], "--list") != 0 && ran == 0 ? 2 : 0;
}
