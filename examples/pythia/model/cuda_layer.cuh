// What a GPT-NeoX layer is around its attention: LayerNorms, projections, MLP and the two ways of
// joining the residual stream. Prefill and decoding differ in the attention they pass in.
#pragma once

#include <cuda_runtime.h>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/cuda_check.hpp"
#include "examples/pythia/model/cuda_layernorm.cuh"
#include "examples/pythia/model/cuda_linear.cuh"
#include "examples/pythia/model/cuda_state.hpp"
#include "examples/pythia/model/cuda_weights.hpp"

namespace pythia {

template <class T>
LayerNormOutput<T> norm_into(const CudaLayerNorm& norm, T* out) {
  return {norm.weight, norm.bias, out};
}

/// first (and second, unless its `out` is null) of `rows` rows of the residual stream.
template <class T>
void normalise(const LaunchContext& launch, const Config& config, const Activations<T>& activations,
               int rows, const LayerNormOutput<T>& first, const LayerNormOutput<T>& second = {}) {
  check_cuda(layernorm(activations.residual, rows, config.hidden_size,
                       static_cast<float>(config.layer_norm_eps), first, second, launch.stream),
             "layernorm");
}

/// A layer up to and with its attention() for `rows` rows, which reads activations.qkv and fills
/// activations.attention_out.
template <class T, class Attention>
void begin_layer(const LaunchContext& launch, const Config& config, const CudaLayer<T>& layer,
                 const Activations<T>& activations, int rows, const Attention& attention) {
  const auto attention_norm = norm_into(layer.attention_norm, activations.attention_in);
  const auto mlp_norm = norm_into(layer.mlp_norm, activations.mlp_in);
  normalise(launch, config, activations, rows, attention_norm,
            config.parallel_residual ? mlp_norm : LayerNormOutput<T>{});
  apply_bias(launch, layer.qkv, activations.attention_in, rows, activations.qkv);
  attention();
}

/// The rest of a layer, for all rows or for some of them: adds to the residual stream.
template <class T>
void end_layer(const LaunchContext& launch, const Config& config, const CudaLayer<T>& layer,
               const Activations<T>& activations, int rows) {
  apply_residual(launch, layer.dense, activations.attention_out, rows, activations.residual);
  if (!config.parallel_residual) {
    normalise(launch, config, activations, rows, norm_into(layer.mlp_norm, activations.mlp_in));
  }
  apply_gelu(launch, layer.up, config.activation, activations.mlp_in, rows, activations.mlp);
  apply_residual(launch, layer.down, activations.mlp, rows, activations.residual);
}

}  // namespace pythia
