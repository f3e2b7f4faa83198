#include "examples/pythia/model/weights.hpp"

#include <cmath>
#include <cstring>
#include <utility>

#include <waterweight/reference/float16.hpp>
#include "examples/pythia/io/error.hpp"

namespace pythia {
namespace {

using waterweight::reference::bfloat16;
using waterweight::reference::float16;

/// Adds "<prefix>.weight" and "<prefix>.bias" of a linear [n, k].
void add_linear(std::vector<WeightSpec>& list, int layer, const std::string& prefix,
                WeightId weight, WeightId bias, std::int64_t n, std::int64_t k) {
  list.push_back({weight, WeightRole::linear, layer, prefix + ".weight", {n, k}});
  list.push_back({bias, WeightRole::bias, layer, prefix + ".bias", {n}});
}

void add_norm(std::vector<WeightSpec>& list, int layer, const std::string& prefix, WeightId weight,
              WeightId bias, std::int64_t size) {
  list.push_back({weight, WeightRole::norm, layer, prefix + ".weight", {size}});
  list.push_back({bias, WeightRole::bias, layer, prefix + ".bias", {size}});
}

[[noreturn]] void refuse(const Tensor& tensor, const std::string& expected,
                         const std::string& found) {
  throw Error(tensor.file.string() + ": tensor " + tensor.name + ": expected " + expected +
              ", found " + found);
}

bool is_float(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f32;
}

void check_scales(const Checkpoint& checkpoint, const Tensor& weight, const WeightSpec& spec) {
  if (!checkpoint.contains(scale_name(spec))) {
    refuse(weight, "the F32 tensor " + scale_name(spec) + " beside these I8 weights", "none");
  }
  const Tensor& scales = checkpoint.at(scale_name(spec), {spec.rows()});
  if (scales.dtype != DType::f32) refuse(scales, "F32", std::string(dtype_name(scales.dtype)));
  for (std::int64_t n = 0; n < spec.rows(); ++n) {
    float scale = 0;
    std::memcpy(&scale, scales.data + n * sizeof scale, sizeof scale);
    if (!std::isfinite(scale) || scale < 0) {
      refuse(scales, "finite scales >= 0",
             std::to_string(scale) + " for output channel " + std::to_string(n));
    }
  }
}

template <class T>
void widen(const std::vector<T>& stored, float* out) {
  for (std::size_t i = 0; i < stored.size(); ++i) out[i] = static_cast<float>(stored[i]);
}

}  // namespace

std::int64_t WeightSpec::elements() const {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

std::vector<WeightSpec> list_weights(const Config& config) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t inner = config.intermediate_size;
  const std::int64_t vocab = config.vocab_size;
  std::vector<WeightSpec> list;
  list.push_back(
      {WeightId::embed_in, WeightRole::embedding, -1, "gpt_neox.embed_in.weight", {vocab, hidden}});
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string layer = "gpt_neox.layers." + std::to_string(i) + ".";
    add_norm(list, i, layer + "input_layernorm", WeightId::input_norm_weight,
             WeightId::input_norm_bias, hidden);
    add_norm(list, i, layer + "post_attention_layernorm", WeightId::post_attention_norm_weight,
             WeightId::post_attention_norm_bias, hidden);
    add_linear(list, i, layer + "attention.query_key_value", WeightId::qkv_weight,
               WeightId::qkv_bias, 3 * hidden, hidden);
    add_linear(list, i, layer + "attention.dense", WeightId::dense_weight, WeightId::dense_bias,
               hidden, hidden);
    add_linear(list, i, layer + "mlp.dense_h_to_4h", WeightId::up_weight, WeightId::up_bias, inner,
               hidden);
    add_linear(list, i, layer + "mlp.dense_4h_to_h", WeightId::down_weight, WeightId::down_bias,
               hidden, inner);
  }
  add_norm(list, -1, "gpt_neox.final_layer_norm", WeightId::final_norm_weight,
           WeightId::final_norm_bias, hidden);
  list.push_back(
      {WeightId::embed_out, WeightRole::linear, -1, "embed_out.weight", {vocab, hidden}});
  return list;
}

std::string scale_name(const WeightSpec& spec) { return spec.name + "_scale"; }

void WeightSource::read_float(const WeightSpec& spec, std::int64_t first, std::int64_t count,
                              float* out) const {
  const auto size = static_cast<std::size_t>(count);
  if (dtype(spec) == DType::f16) {
    std::vector<float16> stored(size);
    read(spec, first, count, stored.data());
    widen(stored, out);
  } else if (dtype(spec) == DType::bf16) {
    std::vector<bfloat16> stored(size);
    read(spec, first, count, stored.data());
    widen(stored, out);
  } else {
    read(spec, first, count, out);
  }
}

CheckpointWeights::CheckpointWeights(Checkpoint checkpoint, const Config& config,
                                     WeightType weights)
    : checkpoint_(std::move(checkpoint)) {
  for (const WeightSpec& spec : list_weights(config)) {
    const Tensor& tensor = checkpoint_.at(spec.name, spec.shape);
    if (is_float(tensor.dtype)) continue;
    if (spec.role != WeightRole::linear || tensor.dtype != DType::i8) {
      const bool linear = spec.role == WeightRole::linear;
      refuse(tensor, linear ? "F16, BF16, F32 or I8" : "F16, BF16 or F32",
             std::string(dtype_name(tensor.dtype)));
    }
    if (weights == WeightType::fp16) {
      refuse(tensor, "16-bit weights (--weights fp16)", "an INT8 checkpoint; use --weights int8");
    }
    check_scales(checkpoint_, tensor, spec);
  }
}

DType CheckpointWeights::dtype(const WeightSpec& spec) const { return tensor(spec).dtype; }

void CheckpointWeights::read(const WeightSpec& spec, std::int64_t first, std::int64_t count,
                             void* out) const {
  const Tensor& stored = tensor(spec);
  const std::size_t width = dtype_bytes(stored.dtype);
  std::memcpy(out, stored.data + static_cast<std::size_t>(first) * width,
              static_cast<std::size_t>(count) * width);
}

void CheckpointWeights::read_scales(const WeightSpec& spec, float* out) const {
  const Tensor& scales = checkpoint_.at(scale_name(spec));
  std::memcpy(out, scales.data, scales.bytes);
}

Config source_config(const ModelSource& source) {
  return source.random_name.empty() ? load_config(source.dir) : named_config(source.random_name);
}

std::unique_ptr<WeightSource> open_weights(const ModelSource& source, const Config& config,
                                           WeightType weights) {
  if (!source.random_name.empty()) return std::make_unique<RandomWeights>();
  return std::make_unique<CheckpointWeights>(Checkpoint::open(source.dir), config, weights);
}

}  // namespace pythia
