// What comes before timing: is the result right? Samples of it against the fp64 reference, all of
// it against the poison it was filled with.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace bench {

/// Throws, naming the place, unless |got - want| <= tolerance (false for NaN).
inline void expect_near(double want, double got, double tolerance, const std::string& what) {
  if (std::abs(got - want) <= tolerance) return;
  throw std::runtime_error("wrong result: " + what + " is " + std::to_string(got) + ", expected " +
                           std::to_string(want) + " +- " + std::to_string(tolerance));
}

/// The relative error of rounding to T: half a unit in the last place of 1.
template <class T>
constexpr double kRounding = std::is_same_v<T, __half> ? 0x1p-11 : 0x1p-8;

/// The first, the last and `count` - 2 random indices below `size`, fewer where there are fewer.
inline std::vector<std::int64_t> sample_indices(std::int64_t size, int count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<std::int64_t> index(0, size - 1);
  std::vector<std::int64_t> result{0};
  if (size > 1) result.push_back(size - 1);
  while (static_cast<int>(result.size()) < count &&
         static_cast<std::int64_t>(result.size()) < size) {
    result.push_back(index(generator));
  }
  return result;
}

}  // namespace bench
