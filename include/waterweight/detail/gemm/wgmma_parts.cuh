// Sums that blocks of the wgmma kernel hand to each other through the workspace, warp by warp.
#pragma once

#include <waterweight/detail/gemm/wgmma_policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr int kWgmmaSlotBytes = 128 * 256 * static_cast<int>(sizeof(float));
inline constexpr int kWgmmaSlotFlags = 16;  ///< one for each warp of consumers

constexpr std::size_t wgmma_workspace_bytes(int blocks) {
  return static_cast<std::size_t>(blocks) *
         (kWgmmaSlotBytes + kWgmmaSlotFlags * sizeof(std::uint32_t));
}

/// A slot of sums and flags for each block of the grid; all zero when a kernel starts and ends.
struct wgmma_parts {
  std::byte* slots;

  /// This warp's flag in the slot of `block`.
  __device__ __forceinline__ std::uint32_t* flag(int block) const {
    return reinterpret_cast<std::uint32_t*>(slots +
                                            static_cast<std::size_t>(gridDim.x) * kWgmmaSlotBytes) +
           block * kWgmmaSlotFlags + threadIdx.x / 32;
  }

  /// This lane's sums: vectors of four, 32 * 16 bytes apart.
  template <int Registers>
  __device__ __forceinline__ float4* sums(int block) const {
    return reinterpret_cast<float4*>(slots + static_cast<std::size_t>(block) * kWgmmaSlotBytes) +
           threadIdx.x / 32 * (Registers / 4) * 32 + threadIdx.x % 32;
  }

  /// Leaves this warp's sums in the slot of `block`.
  template <int Registers>
  __device__ __forceinline__ void give(const float (&d)[Registers], int block) const {
    float4* const to = sums<Registers>(block);
#pragma unroll
    for (int i = 0; i < Registers / 4; ++i) {
      __stcg(to + 32 * i, make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]));
    }
    __threadfence();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag(block)) : "memory");
    }
  }

  /// Adds what the same warp of `block` left, once it has, and clears the slot.
  template <int Registers>
  __device__ __forceinline__ void take(float (&d)[Registers], int block) const {
    std::uint32_t there;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(there)
                   : "l"(flag(block))
                   : "memory");
    } while (there == 0);
    float4* const from = sums<Registers>(block);
    constexpr int kTogether = 8;
#pragma unroll
    for (int begin = 0; begin < Registers / 4; begin += kTogether) {
      float4 more[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) more[i] = __ldcg(from + 32 * (begin + i));
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        float* const sum = d + 4 * (begin + i);
        sum[0] += more[i].x;
        sum[1] += more[i].y;
        sum[2] += more[i].z;
        sum[3] += more[i].w;
        __stcg(from + 32 * (begin + i), make_float4(0.0f, 0.0f, 0.0f, 0.0f));
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) *flag(block) = 0;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
