// What the host and the GPU share of the generator behind "random:NAME": every element is a value
// that the sum of four random bytes picks, close to normal with a small deviation.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <waterweight/reference/float16.hpp>

#include "examples/pythia/model/philox.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {

constexpr int kRandomWeightValues = 4 * 255 + 1;

/// The F16 value of each sum of four bytes. The sum has mean 510 and variance 4 (256^2 - 1) / 12.
inline std::array<waterweight::reference::float16, kRandomWeightValues> random_weight_values() {
  constexpr double kDeviation = 0.02;
  const double sigma = std::sqrt((65536.0 - 1.0) / 3.0);
  std::array<waterweight::reference::float16, kRandomWeightValues> values;
  for (int sum = 0; sum < kRandomWeightValues; ++sum) {
    values[static_cast<std::size_t>(sum)] =
        waterweight::reference::float16((sum - 510) / sigma * kDeviation);
  }
  return values;
}

/// Tells the random numbers of one tensor from those of the others.
inline std::uint32_t random_weight_stream(const WeightSpec& spec) {
  return static_cast<std::uint32_t>((spec.layer + 1) * 64 + static_cast<int>(spec.id));
}

/// The random words of the elements 4 * block to 4 * block + 3.
WATERWEIGHT_HOST_DEVICE inline PhiloxBlock random_weight_block(std::uint32_t stream,
                                                               std::int64_t block) {
  constexpr std::uint64_t kSeed = 20231210;
  return philox(kSeed, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                stream, 0);
}

/// Which value a random word picks.
WATERWEIGHT_HOST_DEVICE inline std::uint32_t random_weight_index(std::uint32_t word) {
  return (word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24);
}

}  // namespace pythia
