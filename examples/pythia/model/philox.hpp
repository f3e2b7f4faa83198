// Philox4x32-10, a counter-based generator: any value of a stream follows from its counter alone,
// so the host and a GPU thread draw the same numbers without sharing state. (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011.)
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>

namespace pythia {

struct PhiloxBlock {
  std::uint32_t word[4];
};

/// The 128 random bits of a 128-bit counter under a 64-bit key.
WATERWEIGHT_HOST_DEVICE inline PhiloxBlock philox(std::uint64_t key, std::uint32_t c0,
                                                  std::uint32_t c1, std::uint32_t c2,
                                                  std::uint32_t c3) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key);
  std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(b);
    c3 = static_cast<std::uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// A uniform number in (0, 1) that belongs to one candidate token: `position` is the absolute
/// position the sampled token will take in its sequence. The logarithm of it is finite, and so is
/// that of its negated logarithm.
WATERWEIGHT_HOST_DEVICE inline float sampling_uniform(std::uint64_t seed, int sequence,
                                                      int position, int token) {
  const PhiloxBlock block =
      philox(seed, static_cast<std::uint32_t>(token) / 4, static_cast<std::uint32_t>(position),
             static_cast<std::uint32_t>(sequence), 0);
  const std::uint32_t bits = block.word[token % 4] >> 9;  // 23 bits and a half: exact in a float
  return (static_cast<float>(bits) + 0.5f) * (1.0f / 8388608.0f);
}

}  // namespace pythia
