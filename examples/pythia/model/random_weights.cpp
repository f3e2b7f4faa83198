// The generator behind "random:NAME".
#include <array>
#include <cmath>
#include <cstdint>

#include <waterweight/reference/float16.hpp>
#include "examples/pythia/model/philox.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {
namespace {

using waterweight::reference::float16;

constexpr std::uint64_t kSeed = 20231210;
constexpr double kDeviation = 0.02;
constexpr int kSums = 4 * 255 + 1;

/// The F16 value of each sum of four bytes. The sum has mean 510 and variance 4 (256^2 - 1) / 12.
std::array<float16, kSums> make_values() {
  const double sigma = std::sqrt((65536.0 - 1.0) / 3.0);
  std::array<float16, kSums> values;
  for (int sum = 0; sum < kSums; ++sum) values[sum] = float16((sum - 510) / sigma * kDeviation);
  return values;
}

}  // namespace

DType RandomWeights::dtype(const WeightSpec&) const { return DType::f16; }

void RandomWeights::read(const WeightSpec& spec, std::int64_t first, std::int64_t count,
                         void* out) const {
  static const std::array<float16, kSums> values = make_values();
  auto* result = static_cast<float16*>(out);
  const auto stream = static_cast<std::uint32_t>((spec.layer + 1) * 64 + static_cast<int>(spec.id));
  PhiloxBlock block{};
  std::int64_t current = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    if (spec.role == WeightRole::norm) {
      result[i] = float16(1);
      continue;
    }
    const std::int64_t element = first + i;
    if (element / 4 != current) {
      current = element / 4;
      block = philox(kSeed, static_cast<std::uint32_t>(current),
                     static_cast<std::uint32_t>(current >> 32), stream, 0);
    }
    const std::uint32_t word = block.word[element % 4];
    result[i] = values[(word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24)];
  }
}

void RandomWeights::read_scales(const WeightSpec&, float*) const {}

}  // namespace pythia
