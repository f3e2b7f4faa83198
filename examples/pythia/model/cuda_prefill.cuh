// A prompt, or a window to be scored, through all layers at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <waterweight/attention.cuh>
#include <waterweight/h2o.cuh>

#include "examples/pythia/model/cuda_embedding.cuh"
#include "examples/pythia/model/cuda_layer.cuh"
#include "examples/pythia/model/cuda_random_scores.cuh"

namespace pythia {

template <class T>
struct Prefill {
  const Config* config = nullptr;
  const CudaWeights<T>* weights = nullptr;
  Activations<T> activations;  ///< at least batch * tokens rows
  waterweight::rotary_view rotary;
  const std::int32_t* tokens = nullptr;   ///< [batch, tokens], padded with any valid id
  const std::int32_t* lengths = nullptr;  ///< [batch]
  float* lse = nullptr;                   ///< [batch, heads, tokens], null where nothing evicts
  float* column_sums = nullptr;  ///< the same, of each layer where one set of keys serves all
};

/// Where the queries, keys and values of `rows` tokens of a layer are: every layer has a place of
/// its own where what is kept of them is known only after the last.
template <class T>
T* layer_qkv(const Prefill<T>& prefill, const KvState<T>& kv, std::size_t layer, int rows) {
  if (!kv.one_set()) return prefill.activations.qkv;
  const std::size_t elements = std::size_t{3} * static_cast<std::size_t>(rows) *
                               static_cast<std::size_t>(prefill.config->hidden_size);
  return prefill.activations.qkv + layer * elements;
}

/// Chooses what the whole model keeps of the prompts and fills the caches of all layers.
template <class T>
void enqueue_model_selection(const LaunchContext& launch, const Prefill<T>& prefill,
                             const KvState<T>& kv, int batch, int tokens) {
  const Config& config = *prefill.config;
  const std::int64_t sums = std::int64_t{batch} * config.num_heads * tokens;
  const waterweight::h2o_score_view scores{prefill.column_sums, batch, config.num_heads, tokens,
                                           config.num_layers,   sums};
  check_cuda(waterweight::h2o_select(scores, prefill.lengths, kv.all_layers, kv.capacity, kv.policy,
                                     launch.workspace, launch.stream),
             "h2o_select");
  for (std::size_t i = 0; i < kv.caches.size(); ++i) {
    T* qkv = layer_qkv(prefill, kv, i, batch * tokens);
    waterweight::kv_cache_view<T> cache = kv.caches[i];
    cache.batch = batch;
    check_cuda(waterweight::h2o_compact<T>(qkv_part<T>(qkv, 1, config, batch, tokens),
                                           qkv_part<T>(qkv, 2, config, batch, tokens),
                                           kv.states[i].position, cache, launch.stream),
               "h2o_compact");
  }
}

/// Leaves the residual stream of `batch` sequences of up to `tokens` tokens. kv null: no cache is
/// filled (scoring under full attention).
template <class T>
void enqueue_prefill(const LaunchContext& launch, const Prefill<T>& prefill, const KvState<T>* kv,
                     int batch, int tokens) {
  const Config& config = *prefill.config;
  const int rows = batch * tokens;
  const bool evicts = kv != nullptr && kv->evicts;
  const bool one_set = kv != nullptr && kv->one_set();
  check_cuda(embed(prefill.weights->embedding, prefill.tokens, rows, config.hidden_size,
                   prefill.activations.residual, launch.stream),
             "embed");
  const auto out = contiguous_heads(prefill.activations.attention_out, config, batch, tokens);
  for (std::size_t i = 0; i < prefill.weights->layers.size(); ++i) {
    Activations<T> activations = prefill.activations;
    if (kv != nullptr) activations.qkv = layer_qkv(prefill, *kv, i, rows);
    const auto q = qkv_part<T>(activations.qkv, 0, config, batch, tokens);
    const auto k = qkv_part<T>(activations.qkv, 1, config, batch, tokens);
    const auto v = qkv_part<T>(activations.qkv, 2, config, batch, tokens);
    float* column_sums = evicts ? prefill.column_sums : nullptr;
    if (one_set) column_sums += i * static_cast<std::size_t>(rows * config.num_heads);
    run_layer(launch, config, prefill.weights->layers[i], activations, rows, [&] {
      for (const auto& heads : {q, k}) {
        check_cuda(waterweight::rotary_embed(heads, prefill.rotary, nullptr, launch.stream),
                   "rotary_embed");
      }
      check_cuda(waterweight::h2o_prefill_attention<T>(launch.device, q, k, v, prefill.lengths, out,
                                                       evicts ? prefill.lse : nullptr, column_sums,
                                                       launch.stream),
                 "h2o_prefill_attention");
      if (kv == nullptr) return;
      if (kv->random) {
        const ScoreColumns prompt{column_sums, nullptr, static_cast<int>(i), 1,
                                  0,           batch,   config.num_heads,    tokens};
        check_cuda(write_random_scores(kv->draw, prompt, launch.stream), "write_random_scores");
      }
      if (one_set) return;
      waterweight::kv_cache_view<T> cache = kv->caches[i];
      cache.batch = batch;
      check_cuda(waterweight::h2o_select_and_compact<T>(k, v, column_sums, prefill.lengths, cache,
                                                        kv->states[i], kv->policy, launch.workspace,
                                                        launch.stream),
                 "h2o_select_and_compact");
    });
  }
  if (one_set) enqueue_model_selection(launch, prefill, *kv, batch, tokens);
}

}  // namespace pythia
