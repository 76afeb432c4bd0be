// Runs files through a fuzz target, without libFuzzer, and prints what became of each: replay FILE...
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

#include "host.h"

int main(int count, char** paths) {
  for (int i = 1; i < count; ++i) {
    std::ifstream file(paths[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "%s can't be read\n", paths[i]);
      return 1;
    }
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    std::printf("%s: ", paths[i]);
    std::fflush(stdout);  // where it crashes, the file's name is there
    std::printf("%s\n", binaryvit::fuzz::RunBytes(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()).c_str());
  }
  return 0;
}
