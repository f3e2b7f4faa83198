// What is launched for one token: the sequence that becomes the CUDA Graph.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <waterweight/attention.cuh>
#include <waterweight/h2o.cuh>

#include "examples/pythia/model/cuda_embedding.cuh"
#include "examples/pythia/model/cuda_layer.cuh"
#include "examples/pythia/model/cuda_random_scores.cuh"

namespace pythia {

/// Everything a step touches, in device memory that does not move.
template <class T>
struct DecodeStep {
  const Config* config = nullptr;
  const CudaWeights<T>* weights = nullptr;
  const KvState<T>* kv = nullptr;
  Activations<T> activations;  ///< at least batch rows
  LayerFork fork;              ///< used if fork.side is not null
  waterweight::rotary_view rotary;
  const std::int32_t* tokens = nullptr;  ///< [batch] to be fed
  float* logits = nullptr;               ///< [batch, vocab] of what follows them

  /// What a layer's attention must move, with the live slots of `log`: keys, values and, where
  /// there are scores, those and positions.
  double attention_bytes(const LaunchLog* log, int batch) const {
    if (log == nullptr) return 0.0;
    const double slots = static_cast<double>(batch) * config->num_heads * log->live_slots;
    const double books = kv->evicts ? 2 * sizeof(float) + sizeof(std::int32_t) : 0;
    return slots * (2 * sizeof(T) * config->head_dim() + books) +
           sizeof(T) * 4.0 * batch * config->hidden_size;
  }
};

/// The last LayerNorm and the head: logits[rows, vocab] of rows of the residual stream.
template <class T>
void run_head(const LaunchContext& launch, const Config& config, const CudaWeights<T>& weights,
              float* residual, const float* addend, int rows, T* normed, float* logits) {
  const double elements = static_cast<double>(rows) * config.hidden_size;
  launch.run("layernorm", elements * (sizeof(float) + sizeof(T)), [&] {
    check_cuda(
        layernorm(residual, addend, rows, config.hidden_size,
                  static_cast<float>(config.layer_norm_eps), norm_into(weights.final_norm, normed),
                  LayerNormOutput<T>{}, launch.stream),
        "layernorm");
  });
  launch.run("head", linear_bytes(weights.embed_out, rows), [&] {
    apply_linear(launch, weights.embed_out, normed, rows, logits, waterweight::identity_epilogue{});
  });
}

/// What the policy does once the scores of all layers are there, as far as the attention kernel has
/// not done it: random's draws for the new keys, and the eviction of kept sets that heads share.
template <class T>
void enqueue_policy(const LaunchContext& launch, const KvState<T>& kv, int batch) {
  waterweight::kv_cache_view<T> cache = kv.caches.front();
  cache.batch = batch;
  if (kv.random) {
    const ScoreColumns slots{kv.all_layers.score,
                             kv.all_layers.position,
                             0,
                             kv.all_layers.layers,
                             kv.all_layers.layer_stride,
                             batch,
                             cache.kv_heads,
                             cache.capacity};
    check_cuda(write_random_scores(kv.draw, slots, launch.stream), "write_random_scores");
  }
  if (!kv.shares_kept_keys()) return;
  check_cuda(
      waterweight::h2o_evict<T>(cache, kv.all_layers, kv.policy, launch.workspace, launch.stream),
      "h2o_evict");
}

/// Feeds tokens[b] of the first `batch` sequences at position step[b]; leaves the logits. The
/// caller appends what makes the next tokens of them, then h2o_advance.
template <class T>
void enqueue_decode_step(const LaunchContext& launch, const DecodeStep<T>& step, int batch) {
  const Config& config = *step.config;
  const Activations<T>& activations = step.activations;
  const double embedded = static_cast<double>(batch) * config.hidden_size;
  launch.run("embedding", embedded * (sizeof(T) + sizeof(float)), [&] {
    check_cuda(embed(step.weights->embedding, step.tokens, batch, config.hidden_size,
                     activations.residual, launch.stream),
               "embed");
  });
  const auto part = [&](int index) {
    return qkv_part<T>(activations.qkv, index, config, batch, 1);
  };
  LayerFork fork = step.fork;
  fork.attention.log = fork.mlp.log = launch.log;
  const bool forked = fork.side != nullptr;
  const waterweight::device_info& attending = forked ? fork.attending : launch.device;
  for (std::size_t i = 0; i < step.weights->layers.size(); ++i) {
    waterweight::kv_cache_view<T> cache = step.kv->caches[i];
    cache.batch = batch;
    const CudaLayer<T>& layer = step.weights->layers[i];
    const auto attend = [&] {
      launch.run("attention", step.attention_bytes(launch.log, batch), [&] {
        check_cuda(
            waterweight::h2o_decode_attention<T>(
                attending, part(0), part(1), part(2), step.rotary, cache, step.kv->states[i],
                step.kv->policy, contiguous_heads(activations.attention_out, config, batch, 1),
                launch.workspace, launch.stream, waterweight::early_read::cache),
            "h2o_decode_attention");
      });
    };
    if (forked) {
      const float* const addend = i > 0 ? activations.mlp_out : nullptr;
      run_forked_layer(launch, fork, config, layer, activations, batch, addend, attend);
    } else {
      begin_layer(launch, config, layer, activations, batch, attend);
      end_layer(launch, config, layer, activations, batch);
    }
  }
  if (step.kv->random || step.kv->shares_kept_keys()) {
    launch.run("policy", 0.0, [&] { enqueue_policy(launch, *step.kv, batch); });
  }
  run_head(launch, config, *step.weights, activations.residual,
           forked ? activations.mlp_out : nullptr, batch, activations.attention_in, step.logits);
}

}  // namespace pythia
