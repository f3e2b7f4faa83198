// The generator behind "random:NAME" on the host.
#include "examples/pythia/model/random_weight_values.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {

using waterweight::reference::float16;

DType RandomWeights::dtype(const WeightSpec&) const { return DType::f16; }

void RandomWeights::read(const WeightSpec& spec, std::int64_t first, std::int64_t count,
                         void* out) const {
  static const auto values = random_weight_values();
  auto* result = static_cast<float16*>(out);
  const std::uint32_t stream = random_weight_stream(spec);
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
      block = random_weight_block(stream, current);
    }
    result[i] = values[random_weight_index(block.word[element % 4])];
  }
}

void RandomWeights::read_scales(const WeightSpec&, float*) const {}

}  // namespace pythia
