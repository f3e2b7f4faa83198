// Host and device copies of [batch, tokens, heads, head_dim] data with gaps between vectors.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include <waterweight/reference/access.hpp>
#include <waterweight/types.hpp>

#include "tests/support/device.cuh"

namespace test {

/// Random vectors on the host and the device in one layout: gaps (poison) between heads and tokens.
template <class T>
class Heads {
 public:
  Heads(int batch, int tokens, int heads, int head_dim)
      : shape_{nullptr, batch, tokens, heads, head_dim, 0, 0, 0} {
    shape_.head_stride = head_dim + 8;
    shape_.token_stride = heads * shape_.head_stride + 16;
    shape_.batch_stride = tokens * shape_.token_stride + 8;
    const std::size_t count = static_cast<std::size_t>(batch * shape_.batch_stride);
    host.resize(count);
    std::memset(static_cast<void*>(host.data()), 0xFF, count * sizeof(T));
    device_ = std::make_unique<DeviceBuffer<T>>(count);
  }

  void fill(std::mt19937& generator, float deviation = 1.0f) {
    std::normal_distribution<float> normal(0.0f, deviation);
    for_each([&](T& value) { value = static_cast<T>(normal(generator)); });
    upload();
  }
  template <class F>
  void for_each(const F& f) {
    for (int b = 0; b < shape_.batch; ++b) {
      for (int t = 0; t < shape_.tokens; ++t) {
        for (int h = 0; h < shape_.heads; ++h) {
          T* vector = waterweight::reference::head_data(view(), b, t, h);
          for (int d = 0; d < shape_.head_dim; ++d) f(vector[d]);
        }
      }
    }
  }
  void upload() { device_->upload(host); }
  void download() { host = device_->download(); }
  void poison() { device_->poison(); }

  waterweight::heads_view<T> view() { return with(host.data()); }
  waterweight::heads_view<T> device() { return with(device_->data()); }
  /// One token of every sequence.
  waterweight::heads_view<T> device_token(int t) { return one_token(device(), t); }
  waterweight::heads_view<T> token(int t) { return one_token(view(), t); }

  std::vector<T> host;

 private:
  waterweight::heads_view<T> with(T* data) const {
    auto view = shape_;
    view.data = data;
    return view;
  }
  static waterweight::heads_view<T> one_token(waterweight::heads_view<T> view, int t) {
    view.data += t * view.token_stride;
    view.tokens = 1;
    return view;
  }

  waterweight::heads_view<T> shape_;
  std::unique_ptr<DeviceBuffer<T>> device_;
};

inline std::vector<float> inverse_frequencies(int dims) {
  std::vector<float> result;
  for (int i = 0; i < dims / 2; ++i) {
    result.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / dims)));
  }
  return result;
}

}  // namespace test
