// The caches of a whole model on the device, the decode attention that runs over them layer by
// layer, and its verification.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <waterweight/attention.cuh>
#include <waterweight/h2o.cuh>
#include <waterweight/reference/h2o.hpp>

#include "bench/harness/device_buffer.cuh"
#include "bench/harness/random.cuh"
#include "bench/harness/session.hpp"
#include "bench/harness/verify.hpp"

namespace bench {

struct DecodeShape {
  int layers, batch, heads, capacity, head_dim;
  int start;  ///< tokens in every cache at the beginning
  waterweight::h2o_policy budget;
  bool scored;  ///< false: plain attention, no scores and no eviction
};

/// Every slot below `start` live and in order, the others empty. One thread per slot.
template <class Shape>
__global__ void reset_kernel(Shape shape, std::int64_t slots, std::int32_t* position,
                             std::int32_t* free_slot, std::int32_t* step, std::int32_t* length) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= slots) return;
  const int slot = static_cast<int>(i % shape.capacity);
  position[i] = slot < shape.start ? slot : -1;
  if (slot == 0) free_slot[i / shape.capacity] = shape.start;
  if (i < shape.batch) step[i] = length[i] = shape.start;
}

template <class T>
class DecodeProblem {
 public:
  DecodeProblem(const Session& session, const DecodeShape& shape)
      : shape(shape),
        k_(slots() * shape.head_dim),
        v_(slots() * shape.head_dim),
        score_(slots()),
        position_(slots()),
        free_slot_(slots() / shape.capacity),
        step_(shape.batch),
        length_(shape.batch),
        qkv_(std::size_t{3} * shape.batch * shape.heads * shape.head_dim),
        out_(qkv_.size() / 3),
        inv_freq_(frequencies(shape.head_dim / 4)),
        workspace_(waterweight::h2o_decode_workspace_bytes(shape.batch, shape.heads, shape.capacity,
                                                           shape.head_dim)) {
    check(cudaMemsetAsync(workspace_.data(), 0, workspace_.size(), session.stream),
          "zeroing the workspace");
    fill(k_, normal_distribution{1.0f}, 1, session.stream);
    fill(v_, normal_distribution{1.0f}, 2, session.stream);
    fill(qkv_, normal_distribution{1.0f}, 3, session.stream);
    fill(score_, uniform_distribution{0.0f, 4.0f}, 4, session.stream);
    reset(session);
  }

  /// Back to `start` tokens in every cache. Scores and the contents of slots stay.
  void reset(const Session& session) const {
    const auto count = static_cast<std::int64_t>(slots());
    reset_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, session.stream>>>(
        shape, count, position_.data(), free_slot_.data(), step_.data(), length_.data());
    check(cudaGetLastError(), "resetting the caches");
  }

  /// One token of every sequence in one layer. What runs before it, another layer's or h2o_advance,
  /// leaves this layer's keys and values alone.
  cudaError_t decode(const Session& session, int layer) const {
    const std::size_t heads = std::size_t(layer) * shape.batch * shape.heads;
    const std::size_t slots = heads * shape.capacity;
    const waterweight::kv_cache_view<T> cache{k_.data() + slots * shape.head_dim,
                                              v_.data() + slots * shape.head_dim,
                                              shape.batch,
                                              shape.heads,
                                              shape.capacity,
                                              shape.head_dim};
    waterweight::h2o_state_view state = sequence_state();
    state.score = shape.scored ? score_.data() + slots : nullptr;
    state.position = position_.data() + slots;
    state.free_slot = free_slot_.data() + heads;
    const waterweight::rotary_view rotary{inv_freq_.data(), 2 * static_cast<int>(inv_freq_.size())};
    return waterweight::h2o_decode_attention<T>(
        session.device, qkv(0), qkv(1), qkv(2), rotary, cache, state, shape.budget, out_view(),
        {workspace_.data(), workspace_.size()}, session.stream, waterweight::early_read::cache);
  }

  /// After the last layer of a token.
  cudaError_t advance(const Session& session) const {
    return waterweight::h2o_advance(sequence_state(), shape.batch, shape.capacity, shape.budget,
                                    session.stream);
  }

  /// Runs the first layer once and throws unless sampled heads agree with the fp64 reference.
  void verify(const Session& session) const {
    const auto rows = sample_indices(std::int64_t(shape.batch) * shape.heads, kSampledHeads, 3);
    check(cudaStreamSynchronize(session.stream), "preparing the caches");
    std::vector<Head> expected;
    for (const std::int64_t row : rows) expected.push_back(download_head(row));
    out_.poison(session.stream);
    check(decode(session, 0), "h2o_decode_attention");
    check(cudaStreamSynchronize(session.stream), "h2o_decode_attention");
    for (std::size_t i = 0; i < rows.size(); ++i) verify_head(rows[i], expected[i]);
    reset(session);
  }

  const DecodeShape shape;

 private:
  static constexpr int kSampledHeads = 6;

  /// The state of one KV head of one sequence in the first layer.
  struct Head {
    std::vector<T> k, v;
    std::vector<float> score;
    std::vector<std::int32_t> position;
    std::int32_t free_slot;
  };

  static std::vector<float> frequencies(int dims) {
    std::vector<float> result;
    for (int i = 0; i < dims / 2; ++i) {
      result.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / dims)));
    }
    return result;
  }

  std::size_t slots() const {
    return std::size_t(shape.layers) * shape.batch * shape.heads * shape.capacity;
  }

  waterweight::h2o_state_view sequence_state() const {
    return {nullptr, nullptr, nullptr, step_.data(), length_.data()};
  }

  /// q, k or v of the fused buffer [batch, 1, heads, 3, head_dim], as a model's QKV projection
  /// leaves it.
  waterweight::heads_view<const T> qkv(int which) const {
    const std::int64_t vector = 3 * shape.head_dim, token = shape.heads * vector;
    return {qkv_.data() + which * shape.head_dim,
            shape.batch,
            1,
            shape.heads,
            shape.head_dim,
            token,
            token,
            vector};
  }

  waterweight::heads_view<T> out_view() const {
    const std::int64_t token = std::int64_t(shape.heads) * shape.head_dim;
    return {out_.data(), shape.batch, 1, shape.heads, shape.head_dim, token, token, shape.head_dim};
  }

  Head download_head(std::int64_t row) const {
    const std::size_t first = row * shape.capacity;
    const std::size_t elements = std::size_t(shape.capacity) * shape.head_dim;
    return {download(k_.data() + first * shape.head_dim, elements),
            download(v_.data() + first * shape.head_dim, elements),
            download(score_.data() + first, shape.capacity),
            download(position_.data() + first, shape.capacity),
            download(free_slot_.data() + row, 1)[0]};
  }

  /// `head` is the state before the step.
  void verify_head(std::int64_t row, Head& head) const {
    const std::string name = "head " + std::to_string(row);
    const int dim = shape.head_dim;
    const std::vector<T> fused = download(qkv_.data() + row * 3 * dim, 3 * dim);
    const std::vector<float> inv_freq = download(inv_freq_.data(), inv_freq_.size());
    std::vector<double> want(dim);
    std::int32_t step = shape.start, length = shape.start;
    const auto one = [dim](auto* data) {
      return waterweight::heads_view<std::remove_pointer_t<decltype(data)>>{data, 1,   1,   1,
                                                                            dim,  dim, dim, dim};
    };
    waterweight::reference::h2o_decode_attention<double>(
        one(fused.data()), one(fused.data() + dim), one(fused.data() + 2 * dim),
        {inv_freq.data(), 2 * static_cast<int>(inv_freq.size())}, shape.budget,
        waterweight::kv_cache_view<T>{head.k.data(), head.v.data(), 1, 1, shape.capacity, dim},
        {shape.scored ? head.score.data() : nullptr, head.position.data(), &head.free_slot, &step,
         &length},
        one(want.data()));
    const std::vector<T> out = download(out_.data() + row * dim, dim);
    for (int d = 0; d < dim; ++d) {
      expect_near(want[d], static_cast<float>(out[d]), 4 * kRounding<T> * (std::abs(want[d]) + 0.3),
                  name + ", out[" + std::to_string(d) + "]");
    }
    if (shape.scored) verify_scores(name, head, download_head(row));
  }

  /// The freed slot may differ where two scores are within rounding of each other.
  void verify_scores(const std::string& name, const Head& want, const Head& got) const {
    int empty = 0;
    for (int slot = 0; slot < shape.capacity; ++slot) {
      empty += got.position[slot] < 0;
      if (got.position[slot] < 0 || want.position[slot] < 0) continue;
      expect_near(want.score[slot], got.score[slot], 2e-4 * (0.05 + want.score[slot]),
                  name + ", score[" + std::to_string(slot) + "]");
    }
    if (empty != 1 || got.position[got.free_slot] >= 0) {
      throw std::runtime_error("wrong result: " + name + " has " + std::to_string(empty) +
                               " empty slots after the step, expected the freed one");
    }
  }

  DeviceBuffer<T> k_, v_;
  DeviceBuffer<float> score_;
  DeviceBuffer<std::int32_t> position_, free_slot_, step_, length_;
  DeviceBuffer<T> qkv_, out_;
  DeviceBuffer<float> inv_freq_;
  DeviceBuffer<std::byte> workspace_;
};

}  // namespace bench
