#include "examples/pythia/model/host_model.hpp"

#include <cmath>
#include <cstddef>
#include <utility>

#include "examples/pythia/model/host_pack.hpp"

namespace pythia {
namespace {

/// LayerNorm of each row; sums in double.
std::vector<float> layer_norm(ThreadPool& pool, const float* x, std::int64_t rows,
                              const HostNorm& norm, double eps) {
  const auto size = static_cast<std::int64_t>(norm.weight.size());
  std::vector<float> y(static_cast<std::size_t>(rows * size));
  pool.parallel_for(rows, [&](std::int64_t row, int) {
    const float* in = x + row * size;
    float* out = y.data() + row * size;
    double mean = 0, variance = 0;
    for (std::int64_t i = 0; i < size; ++i) mean += in[i];
    mean /= static_cast<double>(size);
    for (std::int64_t i = 0; i < size; ++i) variance += (in[i] - mean) * (in[i] - mean);
    const double inverse = 1 / std::sqrt(variance / static_cast<double>(size) + eps);
    for (std::int64_t i = 0; i < size; ++i) {
      out[i] = static_cast<float>((in[i] - mean) * inverse) * norm.weight[i] + norm.bias[i];
    }
  });
  return y;
}

}  // namespace

HostModel::HostModel(const Config& config, std::unique_ptr<WeightSource> source, WeightType weights,
                     ThreadPool& pool)
    : config_(config),
      source_(std::move(source)),
      pool_(pool),
      layers_(static_cast<std::size_t>(config.num_layers)) {
  for (const WeightSpec& spec : list_weights(config)) load(spec, weights);
}

void HostModel::load(const WeightSpec& spec, WeightType weights) {
  const auto vector = [&] {
    std::vector<float> values(static_cast<std::size_t>(spec.elements()));
    source_->read_float(spec, 0, spec.elements(), values.data());
    return values;
  };
  const auto linear = [&] { return pack_linear(pool_, *source_, spec, weights); };
  switch (spec.id) {
    case WeightId::embed_in:
      embedding_ = spec;
      break;
    case WeightId::input_norm_weight:
      layer_of(spec).input_norm.weight = vector();
      break;
    case WeightId::input_norm_bias:
      layer_of(spec).input_norm.bias = vector();
      break;
    case WeightId::post_attention_norm_weight:
      layer_of(spec).post_attention_norm.weight = vector();
      break;
    case WeightId::post_attention_norm_bias:
      layer_of(spec).post_attention_norm.bias = vector();
      break;
    case WeightId::qkv_weight:
      layer_of(spec).qkv = linear();
      break;
    case WeightId::qkv_bias:
      layer_of(spec).qkv.bias = vector();
      break;
    case WeightId::dense_weight:
      layer_of(spec).dense = linear();
      break;
    case WeightId::dense_bias:
      layer_of(spec).dense.bias = vector();
      break;
    case WeightId::up_weight:
      layer_of(spec).up = linear();
      break;
    case WeightId::up_bias:
      layer_of(spec).up.bias = vector();
      break;
    case WeightId::down_weight:
      layer_of(spec).down = linear();
      break;
    case WeightId::down_bias:
      layer_of(spec).down.bias = vector();
      break;
    case WeightId::final_norm_weight:
      final_norm_.weight = vector();
      break;
    case WeightId::final_norm_bias:
      final_norm_.bias = vector();
      break;
    case WeightId::embed_out:
      head_ = linear();
      break;
  }
}

std::vector<float> HostModel::forward(const std::vector<std::int32_t>& ids,
                                      const Attention& attention) const {
  const auto rows = static_cast<std::int64_t>(ids.size());
  const std::int64_t hidden = config_.hidden_size;
  std::vector<float> stream(static_cast<std::size_t>(rows * hidden));
  for (std::int64_t row = 0; row < rows; ++row) {
    source_->read_float(embedding_, ids[row] * hidden, hidden, stream.data() + row * hidden);
  }
  const Finish gelu =
      config_.activation == Activation::gelu_erf ? Finish::gelu_erf : Finish::gelu_tanh;
  std::vector<float> qkv(stream.size() * 3);
  std::vector<float> attended(stream.size());
  std::vector<float> inner(static_cast<std::size_t>(rows * config_.intermediate_size));
  for (int i = 0; i < config_.num_layers; ++i) {
    const HostLayer& layer = layers_[i];
    const auto mlp_input = [&] {
      return layer_norm(pool_, stream.data(), rows, layer.post_attention_norm,
                        config_.layer_norm_eps);
    };
    const std::vector<float> normed =
        layer_norm(pool_, stream.data(), rows, layer.input_norm, config_.layer_norm_eps);
    // A parallel residual feeds the MLP from the stream before attention is added to it.
    std::vector<float> mlp;
    if (config_.parallel_residual) mlp = mlp_input();
    host_gemm(pool_, normed.data(), rows, layer.qkv, qkv.data(), Finish::store);
    attention(i, qkv.data(), attended.data());
    host_gemm(pool_, attended.data(), rows, layer.dense, stream.data(), Finish::add);
    if (!config_.parallel_residual) mlp = mlp_input();
    host_gemm(pool_, mlp.data(), rows, layer.up, inner.data(), gelu);
    host_gemm(pool_, inner.data(), rows, layer.down, stream.data(), Finish::add);
  }
  return stream;
}

std::vector<float> HostModel::logits(const float* stream, std::int64_t rows) const {
  const std::vector<float> normed =
      layer_norm(pool_, stream, rows, final_norm_, config_.layer_norm_eps);
  std::vector<float> result(static_cast<std::size_t>(rows * config_.vocab_size));
  host_gemm(pool_, normed.data(), rows, head_, result.data(), Finish::store);
  return result;
}

}  // namespace pythia
