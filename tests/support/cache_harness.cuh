// Caches and state of one or several layers on the device, with a host mirror.
#pragma once

#include <algorithm>

#include <waterweight/attention.cuh>
#include <waterweight/h2o.cuh>
#include <waterweight/reference/h2o.hpp>

#include "tests/support/heads.cuh"

namespace test {

/// Owns cache and state. `scored` false: plain full attention. Several layers lie `stride` heads
/// apart, with a gap between them.
template <class T>
class CacheHarness {
 public:
  CacheHarness(int batch, int heads, int kv_heads, int capacity, int head_dim, bool scored,
               int layers = 1)
      : batch(batch),
        kv_heads(kv_heads),
        capacity(capacity),
        head_dim(head_dim),
        layers(layers),
        stride(std::int64_t{batch} * kv_heads + (layers > 1)),
        scored(scored),
        d_k(slots() * head_dim),
        d_v(slots() * head_dim),
        d_score(slots()),
        d_position(slots()),
        d_free(slots() / capacity),
        d_step(batch),
        d_length(batch),
        d_capacity_of(batch),
        d_workspace(
            std::max(waterweight::h2o_decode_workspace_bytes(batch, heads, capacity, head_dim),
                     sizeof(float) * layers * batch * capacity)) {
    empty();
    d_workspace.upload(std::vector<unsigned char>(d_workspace.size(), 0));
  }

  std::size_t slots() const { return static_cast<std::size_t>(layers * stride * capacity); }
  /// The first slot of a head.
  std::size_t first(int layer, int b, int h) const {
    return static_cast<std::size_t>((layer * stride + std::int64_t{b} * kv_heads + h) * capacity);
  }

  /// Bounds of single sequences from here on.
  void bound(const std::vector<std::int32_t>& bounds) {
    capacity_of = bounds;
    d_capacity_of.upload(bounds);
  }

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

  waterweight::kv_cache_view<T> cache(int layer = 0) {
    return cache_of(d_k.data(), d_v.data(), layer);
  }
  waterweight::kv_cache_view<T> host_cache(int layer = 0) {
    return cache_of(k.data(), v.data(), layer);
  }
  /// Of all layers; state().layer(l, capacity) of one.
  waterweight::h2o_state_view state() {
    return {scored ? d_score.data() : nullptr,
            d_position.data(),
            d_free.data(),
            d_step.data(),
            d_length.data(),
            capacity_of.empty() ? nullptr : d_capacity_of.data(),
            layers,
            stride};
  }
  waterweight::h2o_state_view host_state() {
    return {scored ? score.data() : nullptr,
            position.data(),
            free_slot.data(),
            step.data(),
            length.data(),
            capacity_of.empty() ? nullptr : capacity_of.data(),
            layers,
            stride};
  }
  waterweight::workspace workspace() { return {d_workspace.data(), d_workspace.size()}; }
  bool workspace_is_zero() {
    const std::vector<unsigned char> bytes = d_workspace.download();
    return std::all_of(bytes.begin(), bytes.end(), [](unsigned char byte) { return byte == 0; });
  }
  void upload() {
    d_k.upload(k);
    d_v.upload(v);
    d_score.upload(score);
    d_position.upload(position);
    d_free.upload(free_slot);
    d_step.upload(step);
    d_length.upload(length);
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

  const int batch, kv_heads, capacity, head_dim, layers;
  const std::int64_t stride;
  const bool scored;
  DeviceBuffer<T> d_k, d_v;
  DeviceBuffer<float> d_score;
  DeviceBuffer<std::int32_t> d_position, d_free, d_step, d_length, d_capacity_of;
  DeviceBuffer<unsigned char> d_workspace;
  std::vector<T> k, v;
  std::vector<float> score;
  std::vector<std::int32_t> position, free_slot, step, length, capacity_of;

 private:
  waterweight::kv_cache_view<T> cache_of(T* keys, T* values, int layer) const {
    const std::int64_t elements = layer * stride * capacity * head_dim;
    return {keys + elements, values + elements, batch, kv_heads, capacity, head_dim};
  }
};

}  // namespace test
