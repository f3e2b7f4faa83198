#include "examples/pythia/cli/int8_checkpoint.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <waterweight/reference/float16.hpp>
#include <waterweight/reference/quantize.hpp>
#include <waterweight/version.hpp>

#include "examples/pythia/io/error.hpp"

namespace pythia {
namespace {

namespace fs = std::filesystem;
using waterweight::reference::bfloat16;
using waterweight::reference::float16;

constexpr std::int64_t kPieceElements = std::int64_t{1} << 22;  // widened to fp32 at a time
constexpr std::uint64_t kHeaderAllowance = 1 << 20;

/// Calls function(fp32 values, first row, rows) for one run of rows after the other.
template <class Function>
void for_each_piece(const WeightSource& source, const WeightSpec& spec, const Function& function) {
  const std::int64_t most = std::max<std::int64_t>(1, kPieceElements / spec.cols());
  std::vector<float> values;
  for (std::int64_t first = 0; first < spec.rows(); first += most) {
    const std::int64_t rows = std::min(most, spec.rows() - first);
    values.resize(static_cast<std::size_t>(rows * spec.cols()));
    source.read_float(spec, first * spec.cols(), rows * spec.cols(), values.data());
    function(values, first, rows);
  }
}

Error not_finite(const fs::path& origin, const WeightSpec& spec, std::int64_t row) {
  return Error(origin.string() + ": tensor " + spec.name +
               ": expected finite weights, found a NaN or an infinity in row " +
               std::to_string(row));
}

void write_linear(const WeightSource& source, const WeightSpec& spec, const RowQuantizer& quantize,
                  const fs::path& origin, SafetensorsWriter* writer) {
  std::vector<std::int8_t> quantized(static_cast<std::size_t>(spec.elements()));
  std::vector<float> scales(static_cast<std::size_t>(spec.rows()));
  for_each_piece(source, spec,
                 [&](std::vector<float>& values, std::int64_t first, std::int64_t rows) {
                   const std::int64_t bad =
                       quantize(values.data(), rows, spec.cols(),
                                quantized.data() + first * spec.cols(), scales.data() + first);
                   if (bad >= 0) throw not_finite(origin, spec, first + bad);
                 });
  writer->write(quantized.data(), quantized.size());
  writer->write(scales.data(), scales.size() * sizeof(float));
}

template <class T>
void write_rounded(const WeightSource& source, const WeightSpec& spec, const fs::path& origin,
                   SafetensorsWriter* writer) {
  std::vector<T> rounded;
  rounded.reserve(static_cast<std::size_t>(spec.elements()));
  for_each_piece(source, spec, [&](std::vector<float>& values, std::int64_t first, std::int64_t) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::int64_t row = first + static_cast<std::int64_t>(i) / spec.cols();
      if (!std::isfinite(values[i])) throw not_finite(origin, spec, row);
      rounded.emplace_back(values[i]);
      if (!std::isfinite(static_cast<float>(rounded.back()))) {
        throw Error(origin.string() + ": tensor " + spec.name +
                    ": expected values within the range of fp16, found " +
                    std::to_string(values[i]) + " in row " + std::to_string(row) +
                    " (--dtype bf16 can hold it)");
      }
    }
  });
  writer->write(rounded.data(), rounded.size() * sizeof(T));
}

}  // namespace

RowQuantizer reference_row_quantizer() {
  return [](const float* w, std::int64_t rows, std::int64_t cols, std::int8_t* q, float* scale) {
    return waterweight::reference::quantize_per_channel(
        waterweight::matrix_view<const float>{w, rows, cols, cols},
        waterweight::mutable_int8_weight_view{q, scale, rows, cols, cols});
  };
}

std::vector<TensorSpec> int8_checkpoint_specs(const std::vector<WeightSpec>& weights,
                                              ActivationType type) {
  const DType rest = type == ActivationType::bf16 ? DType::bf16 : DType::f16;
  std::vector<TensorSpec> specs;
  for (const WeightSpec& spec : weights) {
    const bool linear = spec.role == WeightRole::linear;
    specs.push_back({spec.name, linear ? DType::i8 : rest, spec.shape});
    if (linear) specs.push_back({scale_name(spec), DType::f32, {spec.rows()}});
  }
  return specs;
}

std::uint64_t total_bytes(const std::vector<TensorSpec>& specs) {
  std::uint64_t total = 0;
  for (const TensorSpec& spec : specs) {
    std::uint64_t bytes = dtype_bytes(spec.dtype);
    for (const std::int64_t extent : spec.shape) bytes *= static_cast<std::uint64_t>(extent);
    total += bytes;
  }
  return total;
}

void require_disk_space(const fs::path& directory, std::uint64_t needed) {
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  if (error || space.available >= needed + kHeaderAllowance) return;
  throw Error(directory.string() + ": not enough disk space: needed " +
              std::to_string(needed + kHeaderAllowance) + " bytes, free " +
              std::to_string(space.available) + " bytes");
}

void write_int8_checkpoint(const WeightSource& source, const std::vector<WeightSpec>& weights,
                           ActivationType type, const RowQuantizer& quantize,
                           const fs::path& origin, const fs::path& file,
                           const std::function<void(std::int64_t)>& progress) {
  const std::map<std::string, std::string> metadata = {
      {"format", "pt"},
      {"quantization", "int8, symmetric per output channel: weight = weight_scale * int8"},
      {"producer", "waterweight " + std::to_string(WATERWEIGHT_VERSION_MAJOR) + "." +
                       std::to_string(WATERWEIGHT_VERSION_MINOR) + "." +
                       std::to_string(WATERWEIGHT_VERSION_PATCH)}};
  SafetensorsWriter writer(file, int8_checkpoint_specs(weights, type), metadata);
  std::int64_t done = 0;
  for (const WeightSpec& spec : weights) {
    if (spec.role == WeightRole::linear) {
      write_linear(source, spec, quantize, origin, &writer);
    } else if (type == ActivationType::bf16) {
      write_rounded<bfloat16>(source, spec, origin, &writer);
    } else {
      write_rounded<float16>(source, spec, origin, &writer);
    }
    progress(++done);
  }
  writer.finish();
}

}  // namespace pythia
