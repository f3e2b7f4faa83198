// Tiles of the tiled GEMM whose K several blocks share: who computes what, and how the sums get
// together, warp by warp, through the workspace.
#pragma once

#include <waterweight/detail/gemm/policy.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// The first `whole` blocks of the grid take a tile of Y each; of the other tiles `splits`
/// neighbouring blocks have a part of K each. The last of these adds what the ones before it leave
/// in the workspace, always in the same order. It waits only for blocks that started before it, and
/// those for nobody.
struct tiled_parts {
  std::byte* workspace;  ///< all zero when the kernel starts and when it ends
  int whole;
  int splits;

  /// A block's tile, of how many parts this is, and which of them the block has.
  struct share {
    int tile, count, part;
  };
  __device__ __forceinline__ share of_block(int block) const {
    if (block < whole) return {block, 1, 0};
    return {whole + (block - whole) / splits, splits, (block - whole) % splits};
  }

  /// The sums of the tile's earlier parts are added, or this part's left for the last one. True if
  /// the sums are those of the tile.
  template <int Registers>
  __device__ __forceinline__ bool combine(float (&sums)[Registers], const share& s) const {
    const int last = s.count - 1, first_place = (s.tile - whole) * last;
    if (s.part < last) {
      give(sums, first_place + s.part);
      return false;
    }
    for (int other = 0; other < last; ++other) take(sums, first_place + other);
    return true;
  }

 private:
  /// Where this warp's sums of a part lie; its flag is behind them.
  template <int Registers>
  __device__ __forceinline__ float4* place(int index) const {
    constexpr int kBytes = tiled_policy::part_bytes(Registers);
    const std::int64_t warp = std::int64_t{index} * (blockDim.x / 32) + threadIdx.x / 32;
    return reinterpret_cast<float4*>(workspace + warp * kBytes);
  }

  template <int Registers>
  __device__ __forceinline__ void give(const float (&sums)[Registers], int index) const {
    float4* const to = place<Registers>(index);
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < Registers; i += 4) {
      __stcg(to + 8 * i + lane, make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
    }
    __syncwarp();
    if (lane == 0) {
      asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(to + 8 * Registers) : "memory");
    }
  }

  template <int Registers>
  __device__ __forceinline__ void take(float (&sums)[Registers], int index) const {
    float4* const from = place<Registers>(index);
    const int lane = threadIdx.x % 32;
    std::uint32_t there;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(there)
                   : "l"(from + 8 * Registers)
                   : "memory");
    } while (there == 0);
    constexpr int kTogether = 32;
#pragma unroll
    for (int begin = 0; begin < Registers; begin += kTogether) {
      float4 more[kTogether / 4];
#pragma unroll
      for (int i = 0; i < kTogether; i += 4) {
        float4* const at = from + 8 * (begin + i) + lane;
        more[i / 4] = __ldcg(at);
        __stcg(at, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
      }
#pragma unroll
      for (int i = 0; i < kTogether; i += 4) {
        sums[begin + i] += more[i / 4].x;
        sums[begin + i + 1] += more[i / 4].y;
        sums[begin + i + 2] += more[i / 4].z;
        sums[begin + i + 3] += more[i / 4].w;
      }
    }
    __syncwarp();
    if (lane == 0) *reinterpret_cast<std::uint32_t*>(from + 8 * Registers) = 0;
  }
};

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
