#include "examples/pythia/model/host_pack.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <waterweight/reference/quantize.hpp>
#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/host_kernel.hpp"

namespace pythia {
namespace {

/// rows [count][cols] -> panel [cols][kPanel].
template <class T>
void transpose(const T* rows, std::int64_t count, std::int64_t cols, T* panel) {
  for (std::int64_t j = 0; j < count; ++j) {
    for (std::int64_t k = 0; k < cols; ++k) panel[k * kPanel + j] = rows[j * cols + k];
  }
}

template <class T>
void pack_stored(const WeightSource& source, const WeightSpec& spec, std::int64_t n0,
                 std::int64_t count, T* panel) {
  std::vector<T> rows(static_cast<std::size_t>(count * spec.cols()));
  source.read(spec, n0 * spec.cols(), count * spec.cols(), rows.data());
  transpose(rows.data(), count, spec.cols(), panel);
}

void pack_quantized(const WeightSource& source, const WeightSpec& spec, std::int64_t n0,
                    std::int64_t count, float* scale, std::int8_t* panel) {
  const std::int64_t cols = spec.cols();
  std::vector<float> rows(static_cast<std::size_t>(count * cols));
  std::vector<std::int8_t> quantized(rows.size());
  source.read_float(spec, n0 * cols, count * cols, rows.data());
  const std::int64_t bad = waterweight::reference::quantize_per_channel(
      waterweight::matrix_view<const float>{rows.data(), count, cols, cols},
      {quantized.data(), scale + n0, count, cols, cols});
  if (bad >= 0) {
    throw Error("tensor " + spec.name +
                ": expected finite weights, found a NaN or an infinity in row " +
                std::to_string(n0 + bad));
  }
  transpose(quantized.data(), count, cols, panel);
}

}  // namespace

PackedLinear pack_linear(ThreadPool& pool, const WeightSource& source, const WeightSpec& spec,
                         WeightType weights) {
  const DType stored = source.dtype(spec);
  const bool quantize = weights == WeightType::int8 && stored != DType::i8;
  PackedLinear packed;
  packed.rows = spec.rows();
  packed.cols = spec.cols();
  packed.type = quantize ? DType::i8 : stored;
  const std::int64_t panels = (packed.rows + kPanel - 1) / kPanel;
  const auto width = static_cast<std::int64_t>(dtype_bytes(packed.type));
  packed.panels.resize(static_cast<std::size_t>(panels * packed.cols * kPanel * width));
  if (packed.type == DType::i8) packed.scale.resize(static_cast<std::size_t>(packed.rows));
  if (stored == DType::i8) source.read_scales(spec, packed.scale.data());
  pool.parallel_for(panels, [&](std::int64_t index, int) {
    const std::int64_t n0 = index * kPanel;
    const std::int64_t count = std::min<std::int64_t>(kPanel, packed.rows - n0);
    std::uint8_t* panel = packed.panels.data() + index * packed.cols * kPanel * width;
    if (quantize) {
      pack_quantized(source, spec, n0, count, packed.scale.data(),
                     reinterpret_cast<std::int8_t*>(panel));
    } else if (width == 1) {
      pack_stored(source, spec, n0, count, panel);
    } else if (width == 2) {
      pack_stored(source, spec, n0, count, reinterpret_cast<std::uint16_t*>(panel));
    } else {
      pack_stored(source, spec, n0, count, reinterpret_cast<float*>(panel));
    }
  });
  return packed;
}

}  // namespace pythia
