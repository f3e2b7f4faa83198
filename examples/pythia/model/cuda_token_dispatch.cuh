// The models that have a token kernel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "examples/pythia/model/cuda_token_types.cuh"
#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// Calls f(head_dim, E, Element()) with std::integral_constants for the models that have a token
/// kernel; otherwise returns false. E, Element: see token_kernel.
template <class T, class F>
bool dispatch_token_kernel(int head_dim, int hidden, WeightType weights, const F& f) {
  const auto is = [&](auto dim, auto e) {
    if (head_dim != dim || hidden != e * kTokenStagingThreads) return false;
    // With 16-bit weights not every width has code: it takes long to compile.
    constexpr bool kHasHalf = dim.value <= 128 && (dim.value < 128 || e.value > 1);
    if (weights == WeightType::int8) {
      f(dim, e, std::int8_t{});
    } else if constexpr (kHasHalf) {
      f(dim, e, T{});
    }
    return weights == WeightType::int8 || kHasHalf;
  };
  using std::integral_constant;
  constexpr integral_constant<int, 64> k64;
  constexpr integral_constant<int, 80> k80;
  constexpr integral_constant<int, 128> k128;
  constexpr integral_constant<int, 256> k256;
  constexpr integral_constant<int, 1> small;  // the bundled model and those of the tests
  constexpr integral_constant<int, 4> k1024;
  constexpr integral_constant<int, 8> k2048;
  constexpr integral_constant<int, 10> k2560;
  return is(k80, k2560) || is(k128, k2048) || is(k256, k2048) || is(k64, k1024) || is(k64, small) ||
         is(k128, small) || is(k256, small);
}

}  // namespace pythia
