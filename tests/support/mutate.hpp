// Deterministic damage: the same seeds break the same bytes on every machine.
#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace test_support {

/// One to four changes of `content`: a byte replaced, a bit flipped, a stretch removed or doubled,
/// or the end cut off.
inline std::string mutate(std::string content, std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](std::size_t limit) { return random() % limit; };
  const std::string likely = "{}[]\",:0-9\\ex";
  for (std::size_t changes = 1 + below(4); changes > 0 && !content.empty(); --changes) {
    const std::size_t at = below(content.size());
    switch (below(6)) {
      case 0:
        content[at] = static_cast<char>(below(256));
        break;
      case 1:
        content[at] = likely[below(likely.size())];
        break;
      case 2:
        content[at] = static_cast<char>(content[at] ^ (1 << below(8)));
        break;
      case 3:
        content.erase(at, 1 + below(8));
        break;
      case 4:
        content.insert(at, content.substr(at, 1 + below(64)));
        break;
      default:
        if (below(8) == 0) content.resize(at);
        break;
    }
  }
  return content;
}

}  // namespace test_support
