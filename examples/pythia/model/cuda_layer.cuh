// What a GPT-NeoX layer is around its attention: LayerNorms, projections, MLP and the two ways of
// joining the residual stream. Prefill and decoding differ in the attention they pass in.
#pragma once

#include <cuda_runtime.h>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/cuda_check.hpp"
#include "examples/pythia/model/cuda_graph.hpp"
#include "examples/pythia/model/cuda_layernorm.cuh"
#include "examples/pythia/model/cuda_linear.cuh"
#include "examples/pythia/model/cuda_state.hpp"
#include "examples/pythia/model/cuda_weights.hpp"

namespace pythia {

template <class T>
LayerNormOutput<T> norm_into(const CudaLayerNorm& norm, T* out) {
  return {norm.weight, norm.bias, out};
}

/// first (and second, unless its `out` is null) of `rows` rows of the residual stream, to which
/// addend, unless null, is added before.
template <class T>
void normalise(const LaunchContext& launch, const Config& config, const Activations<T>& activations,
               int rows, const float* addend, const LayerNormOutput<T>& first,
               const LayerNormOutput<T>& second = {}) {
  const double elements = static_cast<double>(rows) * config.hidden_size;
  launch.run("layernorm", elements * (sizeof(float) + sizeof(T) * (second.out ? 2 : 1)), [&] {
    check_cuda(layernorm(activations.residual, addend, rows, config.hidden_size,
                         static_cast<float>(config.layer_norm_eps), first, second, launch.stream),
               "layernorm");
  });
}

template <class T>
void run_qkv(const LaunchContext& launch, const CudaLayer<T>& layer,
             const Activations<T>& activations, int rows) {
  launch.run("qkv", linear_bytes(layer.qkv, rows), [&] {
    apply_bias(launch, layer.qkv, activations.attention_in, rows, activations.qkv);
  });
}

template <class T>
void run_dense(const LaunchContext& launch, const CudaLayer<T>& layer,
               const Activations<T>& activations, int rows) {
  launch.run("dense", linear_bytes(layer.dense, rows), [&] {
    apply_residual(launch, layer.dense, activations.attention_out, rows, activations.residual);
  });
}

template <class T>
void run_up(const LaunchContext& launch, const Config& config, const CudaLayer<T>& layer,
            const Activations<T>& activations, int rows) {
  launch.run("up", linear_bytes(layer.up, rows), [&] {
    apply_gelu(launch, layer.up, config.activation, activations.mlp_in, rows, activations.mlp);
  });
}

/// A layer up to and with its attention() for `rows` rows, which reads activations.qkv and fills
/// activations.attention_out.
template <class T, class Attention>
void begin_layer(const LaunchContext& launch, const Config& config, const CudaLayer<T>& layer,
                 const Activations<T>& activations, int rows, const Attention& attention) {
  const auto attention_norm = norm_into(layer.attention_norm, activations.attention_in);
  const auto mlp_norm = norm_into(layer.mlp_norm, activations.mlp_in);
  normalise(launch, config, activations, rows, nullptr, attention_norm,
            config.parallel_residual ? mlp_norm : LayerNormOutput<T>{});
  run_qkv(launch, layer, activations, rows);
  attention();
}

/// The rest of a layer, for all rows or for some of them: adds to the residual stream.
template <class T>
void end_layer(const LaunchContext& launch, const Config& config, const CudaLayer<T>& layer,
               const Activations<T>& activations, int rows) {
  run_dense(launch, layer, activations, rows);
  if (!config.parallel_residual) {
    normalise(launch, config, activations, rows, nullptr,
              norm_into(layer.mlp_norm, activations.mlp_in));
  }
  run_up(launch, config, layer, activations, rows);
  launch.run("down", linear_bytes(layer.down, rows), [&] {
    apply_residual(launch, layer.down, activations.mlp, rows, activations.residual);
  });
}

/// What the two halves of a forked layer launch with, each told of the SMs that it may take.
struct LayerFork {
  LaunchContext attention;             ///< on the step's own stream
  LaunchContext mlp;                   ///< on the side's
  waterweight::device_info attending;  ///< what the attention kernel is told of the device
  SideStream* side = nullptr;
  bool qkv_ahead = false;
  bool mlp_early = false;  ///< see SideStream::fork
};

/// A whole layer of the parallel kind, its MLP beside attention and dense, and beside QKV where
/// that does not go ahead: the MLP's output is left in activations.mlp_out, to be added to the
/// residual stream by the next LayerNorm (`addend` is what the layer before has left so, or null).
template <class T, class Attention>
void run_forked_layer(const LaunchContext& launch, const LayerFork& fork, const Config& config,
                      const CudaLayer<T>& layer, const Activations<T>& activations, int rows,
                      const float* addend, const Attention& attention) {
  normalise(launch, config, activations, rows, addend,
            norm_into(layer.attention_norm, activations.attention_in),
            norm_into(layer.mlp_norm, activations.mlp_in));
  if (fork.qkv_ahead) run_qkv(fork.attention, layer, activations, rows);
  fork.side->fork(launch.stream, fork.mlp_early);
  run_up(fork.mlp, config, layer, activations, rows);
  launch.run("down", linear_bytes(layer.down, rows), [&] {
    apply_linear(fork.mlp, layer.down, activations.mlp, rows, activations.mlp_out,
                 waterweight::bias_epilogue<T>{layer.down.bias});
  });
  if (!fork.qkv_ahead) run_qkv(fork.attention, layer, activations, rows);
  attention();
  run_dense(fork.attention, layer, activations, rows);
  fork.side->join(launch.stream);
}

}  // namespace pythia
