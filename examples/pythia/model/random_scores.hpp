// What stands in for accumulated attention under Policy::random: a number that each key draws once,
// so that the heavy hitters become a uniform sample of the past.
#pragma once

#include <cstdint>

#include <waterweight/types.hpp>

#include "examples/pythia/model/philox.hpp"

namespace pythia {

struct RandomScores {
  std::uint64_t seed = 0;
  waterweight::h2o_granularity granularity = waterweight::h2o_granularity::per_head;

  /// The draw of one key, the same in any sequence: in [2^40, 2^41) with 23 random bits, so large
  /// that the attention of a step (at most 1 per head) is lost when added in fp32. Of the heads
  /// that share a set of kept keys the first draws for all and the others get 0, so their sum is a
  /// draw.
  WATERWEIGHT_HOST_DEVICE float operator()(int layer, int head, std::int32_t position) const {
    using waterweight::h2o_granularity;
    if (granularity != h2o_granularity::per_head && head != 0) return 0.0f;
    if (granularity == h2o_granularity::per_model && layer != 0) return 0.0f;
    const PhiloxBlock block =
        philox(seed, static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(head),
               static_cast<std::uint32_t>(layer), kPolicyStream);
    return static_cast<float>((block.word[0] >> 9) + kLeast) * kUnit;
  }

 private:
  static constexpr std::uint32_t kPolicyStream = 1;  // sampling draws from 0
  static constexpr std::uint32_t kLeast = 1u << 23;  // keeps the exponent the same for all draws
  static constexpr float kUnit = 131072.0f;
};

}  // namespace pythia
