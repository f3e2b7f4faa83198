// How a long sequence is cut into windows for perplexity: each token is scored once at most.
#pragma once

#include <cstdint>
#include <vector>

namespace pythia {

struct Window {
  std::int64_t begin = 0;        ///< first token
  std::int64_t end = 0;          ///< one past the last
  std::int64_t scored_from = 0;  ///< first token that no earlier window scored: in (begin, end]
};

/// Windows of `length` tokens every `stride` of them, the last one shorter where the sequence ends.
/// The first token of a window has no context and is not scored in it; with stride = length a
/// window of n tokens so scores n - 1, with a smaller stride every token but the very first is
/// scored. 1 <= stride <= length, tokens >= 1.
std::vector<Window> perplexity_windows(std::int64_t tokens, std::int64_t length,
                                       std::int64_t stride);

}  // namespace pythia
