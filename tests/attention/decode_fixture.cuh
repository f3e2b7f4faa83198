// What the tests of the decode step share: random tokens and one step of a layer on the device.
#pragma once

#include <vector>

#include "tests/support/cache_harness.cuh"

namespace test {

struct Shape {
  int batch, heads, kv_heads, head_dim;
};

template <class T>
class DecodeFixture : public GpuTest {
 protected:
  /// Random tokens for `steps` steps and the outputs of the device.
  struct Run {
    Run(const Shape& s, int steps, std::mt19937& generator)
        : q(s.batch, steps, s.heads, s.head_dim),
          k(s.batch, steps, s.kv_heads, s.head_dim),
          v(s.batch, steps, s.kv_heads, s.head_dim),
          out(s.batch, steps, s.heads, s.head_dim),
          inv_freq(inverse_frequencies(s.head_dim / 4)),
          d_inv_freq(inv_freq) {
      for (auto* input : {&q, &k, &v}) input->fill(generator);
    }
    waterweight::rotary_view rotary() {
      return {d_inv_freq.data(), 2 * static_cast<int>(inv_freq.size())};
    }
    waterweight::rotary_view host_rotary() {
      return {inv_freq.data(), 2 * static_cast<int>(inv_freq.size())};
    }

    Heads<T> q, k, v, out;
    std::vector<float> inv_freq;
    DeviceBuffer<float> d_inv_freq;
  };

  cudaError_t step(Run& run, CacheHarness<T>& layer, const waterweight::h2o_policy& budget, int t) {
    const cudaError_t status = waterweight::h2o_decode_attention(
        device, run.q.device_token(t), run.k.device_token(t), run.v.device_token(t), run.rotary(),
        layer.cache(), layer.state(), budget, run.out.device_token(t), layer.workspace(), stream);
    if (status != cudaSuccess) return status;
    return waterweight::h2o_advance(layer.state(), layer.batch, layer.capacity, budget, stream);
  }
};

}  // namespace test
