// The device memory of a decoding session besides the weights: caches, H2O state, activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>
#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/cuda_buffer.hpp"
#include "examples/pythia/model/engine.hpp"
#include "examples/pythia/model/random_scores.hpp"

namespace pythia {

/// Scratch for `rows` tokens going through a layer. T: __half or __nv_bfloat16.
template <class T>
struct Activations {
  float* residual = nullptr;   ///< [rows, hidden]
  T* attention_in = nullptr;   ///< [rows, hidden] after the attention LayerNorm
  T* mlp_in = nullptr;         ///< [rows, hidden] after the MLP LayerNorm
  T* qkv = nullptr;            ///< [rows of one or of several layers, heads, 3, head_dim]
  T* attention_out = nullptr;  ///< [rows, hidden]
  T* mlp = nullptr;            ///< [rows, intermediate]
  float* mlp_out = nullptr;    ///< [rows, hidden] of a forked layer; not planned here

  void plan(const Config& config, std::size_t rows, std::size_t qkv_rows, DeviceArena* arena) {
    const auto hidden = static_cast<std::size_t>(config.hidden_size);
    arena->add(&residual, rows * hidden);
    arena->add(&attention_in, rows * hidden);
    arena->add(&mlp_in, rows * hidden);
    arena->add(&qkv, qkv_rows * 3 * hidden);
    arena->add(&attention_out, rows * hidden);
    arena->add(&mlp, rows * static_cast<std::size_t>(config.intermediate_size));
  }
};

/// Key and value slots of every layer and what H2O knows of them.
template <class T>
struct KvState {
  std::vector<waterweight::kv_cache_view<T>> caches;
  std::vector<waterweight::h2o_state_view> states;  ///< step and length are shared by all layers
  waterweight::h2o_state_view all_layers;           ///< the same as one view
  waterweight::h2o_policy policy;                   ///< of full attention: the default
  bool evicts = false;
  bool random = false;  ///< draws stand in for the scores
  RandomScores draw;
  int capacity = 0;

  /// A full cache has one slot per token and one more: it never runs full, so nothing is evicted.
  void plan(const Config& config, const EngineOptions& options, DeviceArena* arena) {
    evicts = options.policy != Policy::full;
    random = options.policy == Policy::random;
    if (evicts) policy = eviction_policy(options);
    draw = {options.policy_seed, options.granularity};
    capacity = evicts ? policy.capacity() : options.max_tokens + 1;
    const auto batch = static_cast<std::size_t>(options.batch_size);
    const auto layers = static_cast<std::size_t>(config.num_layers);
    const std::size_t heads = batch * static_cast<std::size_t>(config.num_heads);
    const std::size_t slots = heads * static_cast<std::size_t>(capacity);
    layer_elements_ = slots * static_cast<std::size_t>(config.head_dim());
    all_layers.layers = config.num_layers;
    all_layers.layer_stride = static_cast<std::int64_t>(heads);
    caches.resize(layers, {nullptr, nullptr, options.batch_size, config.num_heads, capacity,
                           config.head_dim()});
    arena->add(&k_, layers * layer_elements_);
    arena->add(&v_, layers * layer_elements_);
    if (evicts) arena->add(&all_layers.score, layers * slots);
    arena->add(&all_layers.position, layers * slots);
    arena->add(&all_layers.free_slot, layers * heads);
    arena->add(&all_layers.step, batch);
    arena->add(&all_layers.length, batch);
  }

  /// After the arena's allocation.
  void bind() {
    for (std::size_t i = 0; i < caches.size(); ++i) {
      caches[i].k = k_ + i * layer_elements_;
      caches[i].v = v_ + i * layer_elements_;
      states.push_back(all_layers.layer(static_cast<int>(i), capacity));
    }
  }

  /// The state of `count` layers from `first` on.
  waterweight::h2o_state_view layers(int first, int count) const {
    waterweight::h2o_state_view some = states[static_cast<std::size_t>(first)];
    some.layers = count;
    return some;
  }

  /// Whether one set of kept keys serves the whole model: it is known only after its last layer.
  bool one_set() const {
    return evicts && policy.granularity == waterweight::h2o_granularity::per_model;
  }

  /// Whether heads share a set of kept keys: then eviction is a launch of its own.
  bool shares_kept_keys() const {
    return evicts && policy.granularity != waterweight::h2o_granularity::per_head;
  }

  std::int32_t* step() const { return all_layers.step; }

 private:
  T* k_ = nullptr;  ///< [layers, batch, heads, capacity, head_dim]
  T* v_ = nullptr;  ///< the same
  std::size_t layer_elements_ = 0;
};

/// The three parts of a fused [batch, tokens, heads, 3, head_dim] buffer; `part` 0: q, 1: k, 2: v.
template <class T>
waterweight::heads_view<T> qkv_part(T* qkv, int part, const Config& config, int batch, int tokens) {
  const std::int64_t head_stride = std::int64_t{3} * config.head_dim();
  const std::int64_t token_stride = head_stride * config.num_heads;
  return {
      qkv + part * config.head_dim(), batch,        tokens,     config.num_heads, config.head_dim(),
      token_stride * tokens,          token_stride, head_stride};
}

/// A contiguous [batch, tokens, heads, head_dim] buffer.
template <class T>
waterweight::heads_view<T> contiguous_heads(T* data, const Config& config, int batch, int tokens) {
  return {data,
          batch,
          tokens,
          config.num_heads,
          config.head_dim(),
          std::int64_t{config.hidden_size} * tokens,
          config.hidden_size,
          config.head_dim()};
}

}  // namespace pythia
