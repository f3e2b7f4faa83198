// The staging warps of the token kernel: they wait for a vector that all blocks have contributed to
// and turn it into the planes that the multiplying warps read, or where weights have 16 bits leave
// it as it is. LayerNorm follows layernorm_kernel addition by addition, so both ways of decoding
// get the same bits from it.
#pragma once

#include <waterweight/detail/arch/bulk_copy.cuh>
#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/device/fixed_point.cuh>
#include <waterweight/device/fixed_point_tile.cuh>

#include "examples/pythia/model/cuda_token_types.cuh"

namespace pythia {

/// Shared memory between the staging and the multiplying warps.
struct StagedPlanes {
  std::uint64_t ready[kStagedVectors];
  std::uint64_t done[2];  ///< multiplying warps through with up, and with a layer
  float step[kStagedVectors];
  volatile int mlp_layers;  ///< of how many layers the input of down has arrived
};

/// E: hidden / kTokenStagingThreads, and a quarter of intermediate / kTokenStagingThreads. Element:
/// of the weights.
template <class T, int E, class Element>
class TokenStager {
 public:
  static constexpr int kWarps = kTokenStagingThreads / 32;
  static constexpr bool kPlanes = TokenTile<Element>::kQuantized;
  static constexpr int kHidden = E * kTokenStagingThreads;

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

  /// All vectors of the token, in order. One copy of each part of the code: all of the kernel's has
  /// to stay in the instruction cache from layer to layer.
  __device__ void run(std::uint32_t epoch) {
    for (int layer = 0;; ++layer, ++epoch) {
      stage_norms(layer, epoch);
      if (layer == p_.layer_count) return;

      // Before this block is done, others hardly are, and asking is in their way.
      waterweight::detail::mbarrier_wait(staged_->done, layer & 1);
      const int copy = layer & 1;
      const waterweight::flagged_word* const mlp = p_.exchange.mlp + copy * (p_.inner / 2);
      waterweight::await_flagged(mlp + 2 * thread_, epoch);
      stage_pairs<kTokenParts * kHidden>(mlp, epoch, second_, kDownInput);
      const waterweight::flagged_word* const attention =
          p_.exchange.attention + copy * (p_.hidden / 2);
      await(p_.heads, epoch, [&](int h) { return attention + h * (p_.hidden / 2 / p_.heads); });
      stage_pairs<kHidden>(attention, epoch, first_, kDenseInput);
    }
  }

 private:
  __device__ __forceinline__ void sync() const {
    waterweight::group_sync<kTokenStagingThreads, kStagingBarrier>();
  }
  __device__ __forceinline__ int element(int j) const { return thread_ + j * kTokenStagingThreads; }

  /// block_sum() of layernorm_kernel. `scratch` is written again only after further barriers.
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
  __device__ __forceinline__ void await(int count, std::uint32_t epoch,
                                        const Address& address) const {
    for (int i = thread_; i < count; i += kTokenStagingThreads) {
      while (waterweight::load_flagged(address(i)).y != epoch) {
      }
    }
    sync();
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

  /// Of a pair of T.
  __device__ __forceinline__ static std::uint32_t largest_of(std::uint32_t pair) {
    const float2 values = waterweight::detail::unpack_pair<T>(pair);
    return max(waterweight::magnitude_bits(values.x), waterweight::magnitude_bits(values.y));
  }

  __device__ __forceinline__ void publish(StagedVector vector, float step) const {
    if (thread_ == 0) staged_->step[vector] = step;
    __syncwarp();
    if (thread_ % 32 == 0) waterweight::detail::mbarrier_arrive(staged_->ready + vector);
  }

  /// The residual stream through the layer's two LayerNorms, or the last one.
  __device__ __forceinline__ void stage_norms(int layer, std::uint32_t epoch) {
    float x[E], weight[E], bias[E];
    load_norm(layers_[layer].attention_norm, weight, bias);  // under way while x is waited for
    if (layer == 0) {
      const T* row =
          one_base(p_.embedding + static_cast<std::int64_t>(*p_.token) * p_.hidden + thread_);
#pragma unroll
      for (int j = 0; j < E; ++j) {
        x[j] = waterweight::detail::to_float(row[j * kTokenStagingThreads]);
      }
    } else {
      waterweight::detail::mbarrier_wait(staged_->done + 1, (layer - 1) & 1);
      std::uint32_t words[E];
      const waterweight::flagged_word* const source =
          one_base(p_.exchange.x + (layer & 1) * p_.hidden + thread_);
      waterweight::await_flagged(source, epoch);
      waterweight::wait_flagged<E, kTokenStagingThreads>(source, E, epoch, words);
#pragma unroll
      for (int j = 0; j < E; ++j) x[j] = __uint_as_float(words[j]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      sum += x[j];
    }
    const float mean = group_sum(sum, scratch_->sum) / static_cast<float>(p_.hidden);
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      x[j] -= mean;
      squares += x[j] * x[j];
    }
    const float variance = group_sum(squares, scratch_->squares) / static_cast<float>(p_.hidden);
    const float scale = 1.0f / sqrtf(variance + p_.eps);
    const int norms = layer < p_.layer_count ? 2 : 1;
#pragma unroll 1
    for (int i = 0; i < norms; ++i) {
      std::int8_t* const planes = (i == 0 ? first_ : second_) + thread_;
      const StagedVector vector = i == 0 ? kAttentionInput : kMlpInput;
      std::uint32_t most = 0;
#pragma unroll
      for (int j = 0; j < E; ++j) {
        const float unit = x[j] * scale;
        weight[j] = rounded(unit * weight[j] + bias[j]);
        most = max(most, waterweight::magnitude_bits(weight[j]));
      }
      if constexpr (!kPlanes) {
        T* const values = reinterpret_cast<T*>(i == 0 ? first_ : second_) + thread_;
#pragma unroll
        for (int j = 0; j < E; ++j) {
          values[j * kTokenStagingThreads] = waterweight::detail::from_float<T>(weight[j]);
        }
        publish(vector, 1.0f);
        if (i + 1 < norms) load_norm(layers_[layer].mlp_norm, weight, bias);
        continue;
      }
      put_largest(most, vector);
      sync();
      const waterweight::fixed_point_scale step(largest(vector));
      const int pitch = p_.hidden;
#pragma unroll
      for (int j = 0; j < E; ++j) {
        const std::uint32_t digits = waterweight::fixed_point_digits(weight[j], step.inverse);
        std::int8_t* const place = planes + j * kTokenStagingThreads;
        place[0] = static_cast<std::int8_t>(digits);
        place[pitch] = static_cast<std::int8_t>(digits >> 8);
        place[2 * pitch] = static_cast<std::int8_t>(digits >> 16);
      }
      publish(vector, step.step);
      if (i + 1 < norms) load_norm(layers_[layer].mlp_norm, weight, bias);
    }
  }

  /// Keeps the compiler from giving every element an address of its own.
  template <class U>
  __device__ __forceinline__ static const U* one_base(const U* pointer) {
    asm volatile("" : "+l"(pointer));
    return pointer;
  }

  /// In program order: it takes as long as the wait that comes next.
  __device__ __forceinline__ void load_norm(const CudaLayerNorm& norm, float (&weight)[E],
                                            float (&bias)[E]) const {
    const auto load = [&](const float* source, float(&values)[E]) {
      const float* const mine = one_base(source + thread_);
#pragma unroll
      for (int j = 0; j < E; ++j) {
        asm volatile("ld.global.nc.f32 %0, [%1];"
                     : "=f"(values[j])
                     : "l"(mine + j * kTokenStagingThreads));
      }
    };
    load(norm.weight, weight);
    load(norm.bias, bias);
  }

  __device__ __forceinline__ static float rounded(float x) {
    return waterweight::detail::to_float(waterweight::detail::from_float<T>(x));
  }

  /// Count values that arrive as flagged pairs of T, four to a thread at a time.
  template <int Count>
  __device__ __forceinline__ void stage_pairs(const waterweight::flagged_word* source,
                                              std::uint32_t epoch, std::int8_t* planes,
                                              StagedVector vector) {
    constexpr int kFours = Count / 4,
                  N = (kFours + kTokenStagingThreads - 1) / kTokenStagingThreads;
    constexpr bool All = kFours % kTokenStagingThreads == 0;
    const int present =
        All ? N : (kFours - thread_ + kTokenStagingThreads - 1) / kTokenStagingThreads;
    uint2 words[N];
    waterweight::wait_flagged_pairs<N, kTokenStagingThreads>(one_base(source + 2 * thread_),
                                                             present, epoch, words);
    if constexpr (!kPlanes) {
      if (vector == kDownInput && thread_ == 0) staged_->mlp_layers += 1;
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (!All && j >= present) break;
        reinterpret_cast<uint2*>(planes)[thread_ + j * kTokenStagingThreads] = words[j];
      }
      publish(vector, 1.0f);
      return;
    }
    // The values go through the places of their own digits: from there a small loop can make
    // digits of them, where registers would have to be named one by one in code of its own.
    constexpr int pitch = Count;
    std::int8_t* const mine = planes + 4 * thread_;
    std::uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (!All && j >= present) break;
      most = max(most, max(largest_of(words[j].x), largest_of(words[j].y)));
      std::int8_t* const place = mine + 4 * j * kTokenStagingThreads;
      *reinterpret_cast<std::uint32_t*>(place) = words[j].x;
      *reinterpret_cast<std::uint32_t*>(place + pitch) = words[j].y;
    }
    put_largest(most, vector);
    sync();

    if (vector == kDownInput && thread_ == 0) staged_->mlp_layers += 1;
    const waterweight::fixed_point_scale scale(largest(vector));
    constexpr int kAtOnce = N % 2 == 0 ? 2 : 1;
#pragma unroll kAtOnce
    for (int j = 0; j < present; ++j) {
      std::int8_t* const place = mine + 4 * j * kTokenStagingThreads;
      const float2 low =
          waterweight::detail::unpack_pair<T>(*reinterpret_cast<std::uint32_t*>(place));
      const float2 high =
          waterweight::detail::unpack_pair<T>(*reinterpret_cast<std::uint32_t*>(place + pitch));
      const float four[4] = {low.x, low.y, high.x, high.y};
      const waterweight::fixed_point_words digits(four, scale.inverse);
#pragma unroll
      for (int plane = 0; plane < waterweight::kPlanes; ++plane) {
        *reinterpret_cast<std::uint32_t*>(place + plane * pitch) = digits.plane[plane];
      }
    }
    publish(vector, scale.step);
  }

  const TokenParameters<T>& p_;
  const TokenLayer<T>* layers_;
  Scratch* scratch_;
  StagedPlanes* staged_;
  std::int8_t *first_, *second_;
  int thread_;
};

}  // namespace pythia
