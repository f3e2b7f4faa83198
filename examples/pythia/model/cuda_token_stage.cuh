// The staging warps of the token kernel: they wait for a vector that all blocks have contributed to
// and turn it into the planes that the multiplying warps read. LayerNorm follows layernorm_kernel
// addition by addition, so both ways of decoding give the same bits.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/device/fixed_point.cuh>
#include <waterweight/device/fixed_point_tile.cuh>

#include "examples/pythia/model/cuda_token_types.cuh"

namespace pythia {

/// Which planes: what the multiplying warps wait for once per layer.
enum StagedVector { kAttentionInput, kMlpInput, kDenseInput, kDownInput, kStagedVectors };

/// Shared memory between the staging and the multiplying warps.
struct StagedPlanes {
  std::uint64_t ready[kStagedVectors];
  float step[kStagedVectors];
};

/// E: at least hidden / kTokenStagingThreads, and intermediate / 4 / kTokenStagingThreads.
template <class T, int E>
class TokenStager {
 public:
  static constexpr int kWarps = kTokenStagingThreads / 32;

  struct Scratch {
    float sum[kWarps], squares[kWarps];
    std::uint32_t largest[kStagedVectors][kWarps];
  };

  __device__ __forceinline__ TokenStager(const TokenParameters<T>& p, const TokenLayer<T>* layers,
                                         Scratch* scratch, StagedPlanes* staged,
                                         std::int8_t* first_planes, std::int8_t* second_planes)
      : p_(p),
        layers_(layers),
        scratch_(scratch),
        staged_(staged),
        first_(first_planes),
        second_(second_planes),
        thread_(static_cast<int>(threadIdx.x) - kTokenFirstStager) {}

  /// All vectors of the token, in order.
  __device__ void run(std::uint32_t epoch) {
    for (int layer = 0; layer < p_.layer_count; ++layer, ++epoch) {
      const TokenLayer<T>& weights = layers_[layer];
      LOG(layer, 0);
      stage_norms(layer, epoch, weights.attention_norm, &weights.mlp_norm);
      const int copy = layer & 1;
      LOG(layer, 3);
      const int blocks = static_cast<int>(gridDim.x);
      // A tile that each block is to have done when it is through three quarters of them.
      const waterweight::flagged_word* const mlp = p_.exchange.mlp + copy * (p_.inner / 2);
      await(blocks, epoch,
            [&](int i) { return mlp + (4 * i + 3) * (p_.inner / 4) / (4 * blocks) * 2; });
      stage_pairs<E>(mlp, p_.inner, epoch, second_, kDownInput);
      const waterweight::flagged_word* const attention =
          p_.exchange.attention + copy * (p_.hidden / 2);
      await(p_.heads, epoch, [&](int i) { return attention + i * (p_.hidden / 2 / p_.heads); });
      stage_pairs<(E + 3) / 4>(attention, p_.hidden, epoch, first_, kDenseInput);
    }
    stage_norms(p_.layer_count, epoch, layers_[p_.layer_count].attention_norm, nullptr);
  }

 private:
#ifdef TOKEN_LOG
  __device__ void log(int layer, int e) const {
    if (thread_ == 0 && p_.log != nullptr) {
      long long t;
      asm volatile("mov.u64 %0,%globaltimer;" : "=l"(t));
      p_.log[(blockIdx.x * (p_.layer_count + 1) + layer) * 16 + e] = t;
    }
  }
#endif
  __device__ __forceinline__ void sync() const {
    waterweight::group_sync<kTokenStagingThreads, kStagingBarrier>();
  }
  __device__ __forceinline__ int element(int j) const { return thread_ + j * kTokenStagingThreads; }

  /// Sum over the group; a slot of scratch is written again only after further barriers.
  __device__ __forceinline__ float group_sum(float value, float* scratch) const {
    value = waterweight::warp_reduce(value, [](float a, float b) { return a + b; });
    if (thread_ % 32 == 0) scratch[thread_ / 32] = value;
    sync();
    float result = scratch[0];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) result += scratch[i];
    return result;
  }

  /// Waits for the words address(0 .. count - 1), one to a thread: asking for all of a vector while
  /// most of it is still being computed would only be in the way.
  template <class Address>
  __device__ __forceinline__ void await([[maybe_unused]] int count,
                                        [[maybe_unused]] std::uint32_t epoch,
                                        [[maybe_unused]] const Address& address) const {
#ifndef NOGATE
    for (int i = thread_; i < count; i += kTokenStagingThreads) {
      while (waterweight::load_flagged(address(i)).y != epoch) {
      }
    }
    sync();
#endif
  }

  __device__ __forceinline__ void put_largest(std::uint32_t value, int which) const {
    value = __reduce_max_sync(0xffffffffu, value);
    if (thread_ % 32 == 0) scratch_->largest[which][thread_ / 32] = value;
  }
  __device__ __forceinline__ std::uint32_t largest(int which) const {
    std::uint32_t result = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) result = max(result, scratch_->largest[which][i]);
    return result;
  }

  __device__ __forceinline__ void publish(StagedVector vector, float step) const {
    if (thread_ == 0) staged_->step[vector] = step;
    __syncwarp();
    if (thread_ % 32 == 0) waterweight::detail::mbarrier_arrive(staged_->ready + vector);
  }

  /// The residual stream through one or two LayerNorms.
  __device__ void stage_norms(int layer, std::uint32_t epoch, const CudaLayerNorm& first,
                              const CudaLayerNorm* second) {
    float x[E], weight[E], bias[E];
    load_norm(first, weight, bias);  // under way while x is waited for
    if (layer == 0) {
      const T* row = p_.embedding + static_cast<std::int64_t>(*p_.token) * p_.hidden;
#pragma unroll
      for (int j = 0; j < E; ++j) {
        const int i = element(j);
        x[j] = i < p_.hidden ? waterweight::detail::to_float(row[i]) : 0.0f;
      }
    } else {
      std::uint32_t words[E];
      const waterweight::flagged_word* const source = p_.exchange.x + (layer & 1) * p_.hidden;
      const int blocks = static_cast<int>(gridDim.x), groups = p_.hidden / waterweight::kTileRows;
      await(blocks, epoch,
            [&](int i) { return source + groups * i / blocks * waterweight::kTileRows; });
      waterweight::wait_flagged<E>(source, thread_, kTokenStagingThreads, p_.hidden, epoch, words);
#pragma unroll
      for (int j = 0; j < E; ++j) x[j] = __uint_as_float(words[j]);
    }
    LOG(layer, 1);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      if (element(j) < p_.hidden) sum += x[j];
    }
    const float mean = group_sum(sum, scratch_->sum) / static_cast<float>(p_.hidden);
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const float centred = x[j] - mean;
      if (element(j) < p_.hidden) squares += centred * centred;
    }
    const float variance = group_sum(squares, scratch_->squares) / static_cast<float>(p_.hidden);
    const float scale = 1.0f / sqrtf(variance + p_.eps);
    float unit[E];
#pragma unroll
    for (int j = 0; j < E; ++j) unit[j] = (x[j] - mean) * scale;
    write_norm(unit, weight, bias, first_, kAttentionInput);
    if (second == nullptr) return;
    LOG(layer, 2);
    load_norm(*second, weight, bias);
    write_norm(unit, weight, bias, second_, kMlpInput);
  }

  /// Not moved behind what follows: it takes as long as the wait that comes next.
  __device__ __forceinline__ void load_norm(const CudaLayerNorm& norm, float (&weight)[E],
                                            float (&bias)[E]) const {
    const auto load = [](const float* address) {
      float value;
      asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(address));
      return value;
    };
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const bool there = element(j) < p_.hidden;
      weight[j] = there ? load(norm.weight + element(j)) : 0.0f;
      bias[j] = there ? load(norm.bias + element(j)) : 0.0f;
    }
  }

  __device__ __forceinline__ static float rounded(float x) {
    return waterweight::detail::to_float(waterweight::detail::from_float<T>(x));
  }

  /// Planes of unit * weight + bias, rounded to T as layernorm() stores it.
  __device__ __forceinline__ void write_norm(const float (&unit)[E], const float (&weight)[E],
                                             const float (&bias)[E], std::int8_t* planes,
                                             StagedVector vector) const {
    float x[E];
    std::uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      x[j] = rounded(unit[j] * weight[j] + bias[j]);
      if (element(j) < p_.hidden) most = max(most, waterweight::magnitude_bits(x[j]));
    }
    put_largest(most, vector);
    sync();
    const waterweight::fixed_point_scale scale(largest(vector));
    const int pitch = waterweight::tile_plane_pitch(p_.hidden);
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int i = element(j);
      if (i >= p_.hidden) break;
      const int3 digits = waterweight::fixed_point_digits(x[j], scale.inverse);
      std::int8_t* const place = planes + waterweight::plane_place(i);
      place[0] = static_cast<std::int8_t>(digits.x);
      place[pitch] = static_cast<std::int8_t>(digits.y);
      place[2 * pitch] = static_cast<std::int8_t>(digits.z);
    }
    publish(vector, scale.step);
  }

  /// `count` values that arrive as flagged pairs of T, four to a thread at a time.
  template <int N>
  __device__ void stage_pairs(const waterweight::flagged_word* source, int count,
                              std::uint32_t epoch, std::int8_t* planes, StagedVector vector) {
    uint2 words[N];
    waterweight::wait_flagged_pairs<N>(source, thread_, kTokenStagingThreads, count / 4, epoch,
                                       words);
    LOG((int)((epoch - 1) % (p_.layer_count + 1)), vector == kDenseInput ? 4 : 6);
    std::uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float2 low = waterweight::detail::unpack_pair<T>(words[j].x);
      const float2 high = waterweight::detail::unpack_pair<T>(words[j].y);
      most = max(
          max(most, max(waterweight::magnitude_bits(low.x), waterweight::magnitude_bits(low.y))),
          max(waterweight::magnitude_bits(high.x), waterweight::magnitude_bits(high.y)));
    }
    put_largest(most, vector);
    sync();
    const waterweight::fixed_point_scale scale(largest(vector));
    const int pitch = waterweight::tile_plane_pitch(count);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int i = 4 * element(j);
      if (i >= count) break;
      const float2 low = waterweight::detail::unpack_pair<T>(words[j].x);
      const float2 high = waterweight::detail::unpack_pair<T>(words[j].y);
      const float four[4] = {low.x, low.y, high.x, high.y};
      const waterweight::fixed_point_words digits(four, scale.inverse);
#pragma unroll
      for (int plane = 0; plane < waterweight::kPlanes; ++plane) {
        *reinterpret_cast<std::uint32_t*>(planes + plane * pitch + waterweight::plane_place(i)) =
            digits.plane[plane];
      }
    }
    publish(vector, scale.step);
    LOG((int)((epoch - 1) % (p_.layer_count + 1)), vector == kDenseInput ? 5 : 7);
  }

  const TokenParameters<T>& p_;
  const TokenLayer<T>* layers_;
  Scratch* scratch_;
  StagedPlanes* staged_;
  std::int8_t *first_, *second_;
  int thread_;
};

}  // namespace pythia
