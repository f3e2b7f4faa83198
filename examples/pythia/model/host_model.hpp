// The GPT-NeoX layers on the host, in fp32: embedding, LayerNorm, linears, residual stream, head.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "examples/pythia/model/host_gemm.hpp"
#include "examples/pythia/model/thread_pool.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {

struct HostNorm {
  std::vector<float> weight, bias;
};

struct HostLayer {
  HostNorm input_norm, post_attention_norm;
  PackedLinear qkv, dense, up, down;
};

class HostModel {
 public:
  /// Reads `config`'s weights from `source`. With WeightType::int8 linears that are not INT8 yet
  /// are quantized. Throws Error naming the tensor and row where a linear to be quantized holds a
  /// NaN or an infinity.
  HostModel(const Config& config, std::unique_ptr<WeightSource> source, WeightType weights,
            ThreadPool& pool);

  /// Attention of one layer: qkv [rows, heads, 3, head_dim] before rotary embedding (it may be
  /// changed), out [rows, hidden].
  using Attention = std::function<void(int layer, float* qkv, float* out)>;

  /// Runs every layer over one row per id and returns the residual stream [rows, hidden].
  std::vector<float> forward(const std::vector<std::int32_t>& ids,
                             const Attention& attention) const;

  /// Final norm and head of `rows` rows of the residual stream: [rows, vocab_size].
  std::vector<float> logits(const float* stream, std::int64_t rows) const;

 private:
  void load(const WeightSpec& spec, WeightType weights);
  HostLayer& layer_of(const WeightSpec& spec) { return layers_[spec.layer]; }

  Config config_;
  std::unique_ptr<WeightSource> source_;
  ThreadPool& pool_;
  WeightSpec embedding_;
  std::vector<HostLayer> layers_;
  HostNorm final_norm_;
  PackedLinear head_;
};

}  // namespace pythia
