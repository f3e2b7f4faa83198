// The inverse frequencies of the rotary embedding, as a config defines them.
#pragma once

#include <cmath>
#include <vector>

#include "examples/pythia/io/config.hpp"

namespace pythia {

/// [rotary_dims / 2]: rotary_base^(-2 i / rotary_dims), rounded to fp32.
inline std::vector<float> rotary_frequencies(const Config& config) {
  std::vector<float> frequencies;
  for (int i = 0; i < config.rotary_dims / 2; ++i) {
    frequencies.push_back(
        static_cast<float>(std::pow(config.rotary_base, -2.0 * i / config.rotary_dims)));
  }
  return frequencies;
}

}  // namespace pythia
