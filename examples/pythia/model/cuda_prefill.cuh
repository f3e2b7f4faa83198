// A prompt, or a window to be scored, through all layers at once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <waterweight/attention.cuh>
#include <waterweight/h2o.cuh>

#include "examples/pythia/model/cuda_embedding.cuh"
#include "examples/pythia/model/cuda_layer.cuh"

namespace pythia {

template <class T>
struct Prefill {
  const Config* config = nullptr;
  const CudaWeights<T>* weights = nullptr;
  Activations<T> activations;  ///< at least batch * tokens rows
  waterweight::rotary_view rotary;
  const std::int32_t* tokens = nullptr;   ///< [batch, tokens], padded with any valid id
  const std::int32_t* lengths = nullptr;  ///< [batch]
  float* lse = nullptr;                   ///< [batch, heads, tokens], null without H2O
  float* column_sums = nullptr;           ///< the same
};

/// Leaves the residual stream of `batch` sequences of up to `tokens` tokens. kv null: no cache is
/// filled (scoring under full attention).
template <class T>
void enqueue_prefill(const LaunchContext& launch, const Prefill<T>& prefill, const KvState<T>* kv,
                     int batch, int tokens) {
  const Config& config = *prefill.config;
  const Activations<T>& activations = prefill.activations;
  const int rows = batch * tokens;
  const bool h2o = kv != nullptr && kv->states.front().score != nullptr;
  check_cuda(embed(prefill.weights->embedding, prefill.tokens, rows, config.hidden_size,
                   activations.residual, launch.stream),
             "embed");
  const auto q = qkv_part<T>(activations.qkv, 0, config, batch, tokens);
  const auto k = qkv_part<T>(activations.qkv, 1, config, batch, tokens);
  const auto v = qkv_part<T>(activations.qkv, 2, config, batch, tokens);
  const auto out = contiguous_heads(activations.attention_out, config, batch, tokens);
  for (std::size_t i = 0; i < prefill.weights->layers.size(); ++i) {
    run_layer(launch, config, prefill.weights->layers[i], activations, rows, [&] {
      for (const auto& heads : {q, k}) {
        check_cuda(waterweight::rotary_embed(heads, prefill.rotary, nullptr, launch.stream),
                   "rotary_embed");
      }
      check_cuda(waterweight::h2o_prefill_attention<T>(
                     launch.device, q, k, v, prefill.lengths, out, h2o ? prefill.lse : nullptr,
                     h2o ? prefill.column_sums : nullptr, launch.stream),
                 "h2o_prefill_attention");
      if (kv == nullptr) return;
      waterweight::kv_cache_view<T> cache = kv->caches[i];
      cache.batch = batch;
      check_cuda(waterweight::h2o_select_and_compact<T>(k, v, h2o ? prefill.column_sums : nullptr,
                                                        prefill.lengths, cache, kv->states[i],
                                                        kv->budget, {}, launch.stream),
                 "h2o_select_and_compact");
    });
  }
}

}  // namespace pythia
