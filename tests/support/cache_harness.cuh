// A layer's cache and state on the device with a host mirror, and one decode step on both sides.
#pragma once

#include <algorithm>

#include <waterweight/attention.cuh>
#include <waterweight/h2o.cuh>
#include <waterweight/reference/h2o.hpp>

#include "tests/support/heads.cuh"

namespace test {

/// Owns cache and state. `scored` false: plain full attention.
template <class T>
class CacheHarness {
 public:
  CacheHarness(int batch, int heads, int kv_heads, int capacity, int head_dim, bool scored)
      : batch(batch),
        kv_heads(kv_heads),
        capacity(capacity),
        head_dim(head_dim),
        scored(scored),
        d_k(slots() * head_dim),
        d_v(slots() * head_dim),
        d_score(slots()),
        d_position(slots()),
        d_free(static_cast<std::size_t>(batch) * kv_heads),
        d_step(batch),
        d_length(batch),
        d_workspace(waterweight::h2o_decode_workspace_bytes(batch, heads, capacity, head_dim)) {
    empty();
    d_workspace.upload(std::vector<unsigned char>(d_workspace.size(), 0));
  }

  std::size_t slots() const { return static_cast<std::size_t>(batch) * kv_heads * capacity; }

  /// No token yet. Slots keep their poison: NaN, so reading a dead one shows.
  void empty() {
    d_k.poison();
    d_v.poison();
    d_score.upload(std::vector<float>(slots(), 0.0f));
    d_position.upload(std::vector<std::int32_t>(slots(), -1));
    d_free.upload(std::vector<std::int32_t>(d_free.size(), 0));
    d_step.upload(std::vector<std::int32_t>(d_step.size(), 0));
    d_length.upload(std::vector<std::int32_t>(d_length.size(), 0));
  }

  waterweight::kv_cache_view<T> cache() {
    return {d_k.data(), d_v.data(), batch, kv_heads, capacity, head_dim};
  }
  waterweight::h2o_state_view state() {
    return {scored ? d_score.data() : nullptr, d_position.data(), d_free.data(), d_step.data(),
            d_length.data()};
  }
  waterweight::kv_cache_view<T> host_cache() {
    return {k.data(), v.data(), batch, kv_heads, capacity, head_dim};
  }
  waterweight::h2o_state_view host_state() {
    return {scored ? score.data() : nullptr, position.data(), free_slot.data(), step.data(),
            length.data()};
  }
  waterweight::workspace workspace() { return {d_workspace.data(), d_workspace.size()}; }
  bool workspace_is_zero() {
    const std::vector<unsigned char> bytes = d_workspace.download();
    return std::all_of(bytes.begin(), bytes.end(), [](unsigned char byte) { return byte == 0; });
  }
  void download() {
    k = d_k.download();
    v = d_v.download();
    score = d_score.download();
    position = d_position.download();
    free_slot = d_free.download();
    step = d_step.download();
    length = d_length.download();
  }

  const int batch, kv_heads, capacity, head_dim;
  const bool scored;
  DeviceBuffer<T> d_k, d_v;
  DeviceBuffer<float> d_score;
  DeviceBuffer<std::int32_t> d_position, d_free, d_step, d_length;
  DeviceBuffer<unsigned char> d_workspace;
  std::vector<T> k, v;
  std::vector<float> score;
  std::vector<std::int32_t> position, free_slot, step, length;
};

}  // namespace test
