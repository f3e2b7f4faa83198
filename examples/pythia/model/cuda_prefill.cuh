// A prompt, or a window to be scored, through all layers at once.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <waterweight/attention.cuh>
#include <waterweight/h2o.cuh>

#include "examples/pythia/model/cuda_embedding.cuh"
#include "examples/pythia/model/cuda_last_rows.cuh"
#include "examples/pythia/model/cuda_layer.cuh"
#include "examples/pythia/model/cuda_random_scores.cuh"

namespace pythia {

template <class T>
struct Prefill {
  const Config* config = nullptr;
  const CudaWeights<T>* weights = nullptr;
  Activations<T> activations;  ///< at least batch * tokens rows, and held_rows of qkv
  Activations<T> last;         ///< batch rows, qkv unused: see enqueue_prefill
  waterweight::rotary_view rotary;
  const std::int32_t* tokens = nullptr;     ///< [batch, tokens], padded with any valid id
  const std::int32_t* lengths = nullptr;    ///< [layers, batch], of each layer the same
  const std::int32_t* last_rows = nullptr;  ///< [batch] rows of the prompts' last tokens
  float* lse = nullptr;                     ///< [held_rows, heads], null where nothing evicts
  float* column_sums = nullptr;             ///< the same
  std::size_t held_rows = 0;                ///< at least batch * tokens

  /// Layers whose queries, keys and values are there at the same time: what is kept of a prompt is
  /// chosen and copied for all of them in one go, for alone a layer would not fill the card.
  int layers_at_once(int rows) const {
    const auto most = static_cast<std::size_t>(config->num_layers);
    return static_cast<int>(std::min(most, held_rows / static_cast<std::size_t>(rows)));
  }
};

/// Fills the caches of `count` layers from `first` on, whose queries, keys and values begin at
/// activations.qkv.
template <class T>
void enqueue_kept_keys(const LaunchContext& launch, const Prefill<T>& prefill, const KvState<T>& kv,
                       int first, int count, int batch, int tokens) {
  const Config& config = *prefill.config;
  const auto part = [&](int index) {
    return qkv_part<T>(prefill.activations.qkv, index, config, count * batch, tokens);
  };
  if (kv.random) {
    const std::int64_t heads = std::int64_t{batch} * config.num_heads;
    const ScoreColumns prompts{prefill.column_sums, nullptr, first, count, heads, batch,
                               config.num_heads,    tokens};
    check_cuda(write_random_scores(kv.draw, prompts, launch.stream), "write_random_scores");
  } else if (kv.evicts) {
    check_cuda(waterweight::h2o_column_sums(part(0), part(1), prefill.lengths, prefill.lse,
                                            prefill.column_sums, launch.stream),
               "h2o_column_sums");
  }
  waterweight::kv_cache_view<T> cache = kv.caches[static_cast<std::size_t>(first)];
  cache.batch = batch;
  check_cuda(waterweight::h2o_select_and_compact<T>(part(1), part(2), prefill.column_sums,
                                                    prefill.lengths, cache, kv.layers(first, count),
                                                    kv.policy, launch.workspace, launch.stream),
             "h2o_select_and_compact");
}

/// Fills the caches with `batch` sequences of up to `tokens` tokens and leaves the residual stream
/// of their last tokens in last.residual: behind the last attention no other row is needed. kv
/// null: fills no cache and leaves that of all tokens in activations.residual (scoring under full
/// attention).
template <class T>
void enqueue_prefill(const LaunchContext& launch, const Prefill<T>& prefill, const KvState<T>* kv,
                     int batch, int tokens) {
  const Config& config = *prefill.config;
  const int rows = batch * tokens, at_once = prefill.layers_at_once(rows);
  const bool scored = kv != nullptr && kv->evicts && !kv->random;
  check_cuda(embed(prefill.weights->embedding, prefill.tokens, rows, config.hidden_size,
                   prefill.activations.residual, launch.stream),
             "embed");
  const auto out = contiguous_heads(prefill.activations.attention_out, config, batch, tokens);
  for (int i = 0; i < config.num_layers; ++i) {
    const std::int64_t held = std::int64_t{i % at_once} * rows;
    Activations<T> activations = prefill.activations;
    activations.qkv += held * 3 * config.hidden_size;
    const auto part = [&](int index) {
      return qkv_part<T>(activations.qkv, index, config, batch, tokens);
    };
    const CudaLayer<T>& layer = prefill.weights->layers[static_cast<std::size_t>(i)];
    begin_layer(launch, config, layer, activations, rows, [&] {
      check_cuda(
          waterweight::rotary_embed(part(0), part(1), prefill.rotary, nullptr, launch.stream),
          "rotary_embed");
      check_cuda(
          waterweight::h2o_prefill_attention<T>(
              launch.device, part(0), part(1), part(2), prefill.lengths, out,
              scored ? prefill.lse + held * config.num_heads : nullptr, nullptr, launch.stream),
          "h2o_prefill_attention");
    });
    if (kv != nullptr && i + 1 == config.num_layers) {
      check_cuda(take_rows(activations, prefill.last, prefill.last_rows, batch, config.hidden_size,
                           launch.stream),
                 "take_rows");
      end_layer(launch, config, layer, prefill.last, batch);
    } else {
      end_layer(launch, config, layer, activations, rows);
    }
    const int ready = i % at_once + 1;
    if (kv != nullptr && (ready == at_once || i + 1 == config.num_layers)) {
      enqueue_kept_keys(launch, prefill, *kv, i + 1 - ready, ready, batch, tokens);
    }
  }
}

}  // namespace pythia
