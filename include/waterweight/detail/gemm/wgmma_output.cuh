// How the wgmma kernel's sums become Y. A thread holds them as columns of Y: through shared memory
// they become rows, which the copy engine stores while the next tile is computed.
#pragma once

#include <cstddef>
#include <cstring>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/arch/tma.cuh>
#include <waterweight/detail/arch/wgmma.cuh>
#include <waterweight/detail/gemm/weights.cuh>
#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

template <class Element, class Out, class Epilogue>
struct wgmma_output {
  weight_operand<Element> w;
  Out* y;
  std::int64_t ld;
  int m_count;
  bool aligned;  ///< rows of Y start and end on 16-byte boundaries: there is a tensor map of it
  int first_n;   ///< what the epilogue knows channel 0 as: W and Y may be a part of the caller's
  Epilogue epilogue;

  __device__ __forceinline__ float scale(int n) const {
    return apply_scale(w, 1.0f, min(n, w.rows - 1));
  }

  /// The value of y[m, n]; outside of Y anything.
  __device__ __forceinline__ Out finish(float sum, float scale, int m, int n) const {
    return from_float<Out>(
        epilogue(sum * scale, min(m, m_count - 1), first_n + min(n, w.rows - 1)));
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The values of `Chunk` tokens by a warpgroup's 64 channels on their way to Y, in shared memory:
/// boxes of 128 bytes of channels, tokens 128 bytes apart, under the 128-byte swizzle.
template <class Out, int Chunk>
struct wgmma_staging {
  static constexpr int kBoxChannels = 128 / static_cast<int>(sizeof(Out));
  static constexpr int kBoxBytes = Chunk * 128;
  static constexpr int kBoxes = 64 / kBoxChannels;

  std::byte* base;  ///< in shared memory, at a multiple of 1024

  __device__ __forceinline__ static int offset(int token, int channel) {
    const int byte = channel % kBoxChannels * static_cast<int>(sizeof(Out));
    return channel / kBoxChannels * kBoxBytes + token * 128 + (byte / 16 ^ token % 8) * 16 +
           byte % 16;
  }

  /// Stages a warp's 16 channels from token `first` on, first % 8 == 0: d[4j + e] is the sum of
  /// token first + 8j + 2q + e % 2 and channel g + e / 2 * 8, lane = 4g + q. value(sum, e / 2,
  /// token) finishes it.
  template <int Registers, class Value>
  __device__ __forceinline__ void write(const float (&d)[Registers], int first,
                                        const Value& value) const {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int first_channel = threadIdx.x % 128 / 32 * 16;
    std::byte* const rows = base + first * 128;
    // All values before any store: what the epilogue reads is then read together.
    Out finished[Registers];
#pragma unroll
    for (int i = 0; i < Registers; ++i) {
      finished[i] = value(d[i], i / 2 % 2, first + i / 4 * 8 + 2 * q + i % 2);
    }
#pragma unroll
    for (int j = 0; j < Registers / 4; ++j) {
      if (Chunk % (2 * Registers) != 0 && first + 8 * j >= Chunk) break;
      if constexpr (sizeof(Out) == 2) {
        std::uint32_t pairs[2];
        memcpy(pairs, finished + 4 * j, sizeof pairs);
        store_matrices_transposed(
            shared_address(rows + offset(lane % 8, first_channel + lane / 8 % 2 * 8)) + j * 1024,
            pairs);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          std::byte* const at = rows + offset(2 * q + e % 2, first_channel + g + e / 2 * 8);
          *reinterpret_cast<Out*>(at + j * 1024) = finished[4 * j + e];
        }
      }
    }
  }

  /// By one thread: starts the store of all values to Y from (m, n) on.
  __device__ __forceinline__ void store(const CUtensorMap& y_map, int m, int n, int n_end) const {
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const int channel = n + box * kBoxChannels;
      if (channel < n_end) tma_store(y_map, m, channel, shared_address(base) + box * kBoxBytes);
    }
  }

  /// By the whole warpgroup: stores the first `tokens` of the first Channels itself, to any Y.
  template <int Channels, class Output>
  __device__ __forceinline__ void store_directly(const Output& output, int m, int n,
                                                 int tokens) const {
    constexpr int kVector = 16 / static_cast<int>(sizeof(Out)), kVectors = 64 / kVector;
    tokens = min(tokens, output.m_count - m);
    if (output.aligned && n + Channels <= output.w.rows) {
      constexpr int kStep = 128 / kVectors;  // tokens at a time
      static_assert(kStep % 8 == 0, "the swizzle repeats every 8 tokens");
      const int first = threadIdx.x % 128 / kVectors, channel = threadIdx.x % kVectors * kVector;
      if (channel >= Channels) return;
      const std::byte* from = base + offset(first, channel);
      Out* to = output.y + (m + first) * output.ld + n + channel;
#pragma unroll 4
      for (int token = first; token < tokens; token += kStep) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        from += kStep * 128;
        to += kStep * output.ld;
      }
      return;
    }
    for (int i = threadIdx.x % 128; i < tokens * kVectors; i += 128) {
      const int token = i / kVectors, channel = i % kVectors * kVector;
      if (channel >= Channels) continue;
      const std::byte* const from = base + offset(token, channel);
      Out* const to = output.y + (m + token) * output.ld + n + channel;
      if (output.aligned && n + channel + kVector <= output.w.rows) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        const int count = min(kVector, output.w.rows - n - channel);
        for (int c = 0; c < count; ++c) to[c] = reinterpret_cast<const Out*>(from)[c];
      }
    }
  }
};

#endif  // sm_90a

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
