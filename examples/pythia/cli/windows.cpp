#include "examples/pythia/cli/windows.hpp"

#include <algorithm>

namespace pythia {

std::vector<Window> perplexity_windows(std::int64_t tokens, std::int64_t length,
                                       std::int64_t stride) {
  std::vector<Window> windows;
  std::int64_t previous_end = 0;
  for (std::int64_t begin = 0; previous_end < tokens; begin += stride) {
    const std::int64_t end = std::min(begin + length, tokens);
    windows.push_back({begin, end, std::max(begin + 1, previous_end)});
    previous_end = end;
  }
  return windows;
}

}  // namespace pythia
