// The device memory of a decoding session besides the weights: caches, H2O state, activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>
#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/cuda_buffer.hpp"
#include "examples/pythia/model/engine.hpp"

namespace pythia {

/// Scratch for `rows` tokens going through a layer. T: __half or __nv_bfloat16.
template <class T>
struct Activations {
  float* residual = nullptr;   ///< [rows, hidden]
  T* attention_in = nullptr;   ///< [rows, hidden] after the attention LayerNorm
  T* mlp_in = nullptr;         ///< [rows, hidden] after the MLP LayerNorm
  T* qkv = nullptr;            ///< [rows, heads, 3, head_dim]
  T* attention_out = nullptr;  ///< [rows, hidden]
  T* mlp = nullptr;            ///< [rows, intermediate]

  void plan(const Config& config, std::size_t rows, DeviceArena* arena) {
    const auto hidden = static_cast<std::size_t>(config.hidden_size);
    arena->add(&residual, rows * hidden);
    arena->add(&attention_in, rows * hidden);
    arena->add(&mlp_in, rows * hidden);
    arena->add(&qkv, rows * 3 * hidden);
    arena->add(&attention_out, rows * hidden);
    arena->add(&mlp, rows * static_cast<std::size_t>(config.intermediate_size));
  }
};

/// Key and value slots of every layer and what H2O knows of them.
template <class T>
struct KvState {
  std::vector<waterweight::kv_cache_view<T>> caches;
  std::vector<waterweight::h2o_state_view> states;  ///< step and length are shared by all layers
  waterweight::h2o_budget budget;
  int capacity = 0;

  /// A full cache has one slot per token and one more: it never runs full, so nothing is evicted.
  void plan(const Config& config, const EngineOptions& options, DeviceArena* arena) {
    const bool h2o = options.policy != Policy::full;
    budget = {options.sinks, options.heavy, options.recent};
    capacity = h2o ? budget.capacity() : options.max_tokens + 1;
    const auto batch = static_cast<std::size_t>(options.batch_size);
    const std::size_t heads = batch * static_cast<std::size_t>(config.num_heads);
    const std::size_t slots = heads * static_cast<std::size_t>(capacity);
    const std::size_t elements = slots * static_cast<std::size_t>(config.head_dim());
    caches.resize(static_cast<std::size_t>(config.num_layers));
    states.resize(caches.size());
    for (std::size_t i = 0; i < caches.size(); ++i) {
      caches[i] = {nullptr,          nullptr,  options.batch_size,
                   config.num_heads, capacity, config.head_dim()};
      arena->add(&caches[i].k, elements);
      arena->add(&caches[i].v, elements);
      if (h2o) arena->add(&states[i].score, slots);
      arena->add(&states[i].position, slots);
      arena->add(&states[i].free_slot, heads);
    }
    arena->add(&step_, batch);
    arena->add(&length_, batch);
  }

  /// After the arena's allocation.
  void bind() {
    for (auto& state : states) {
      state.step = step_;
      state.length = length_;
    }
  }

  std::int32_t* step() const { return step_; }

 private:
  std::int32_t* step_ = nullptr;    ///< [batch]
  std::int32_t* length_ = nullptr;  ///< [batch]
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
