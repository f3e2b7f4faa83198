// Block-level small-M GEMM: a block multiplies 16 output channels by up to 8 * NTiles tokens.
//
// Weights are the A operand of mma.m16n8k16 (16 output rows), tokens the B operand (8 columns), so
// one token costs what eight cost. A dot product does not mind the order of K as long as both
// operands agree: a lane takes 16 consecutive weights of row g (and of row g + 8) and feeds four
// k16 steps from them, pairing them with the same 16 consecutive activations. Plain row-major
// [N, K] weights therefore need no repacking, and every weight load is a full 16 bytes.
//
// The warps of the block split K in chunks of 64, interleaved, and the partial sums meet in shared
// memory in warp order: the result does not depend on timing.
#pragma once

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/gemm/weights.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// Shape of one block's work.
struct gemv_policy {
  int warps = 8;    ///< that split K between them
  int n_tiles = 1;  ///< groups of 8 tokens: M <= 8 * n_tiles
  int unroll = 4;   ///< chunks of 64 along K a warp has in flight

  WATERWEIGHT_HOST_DEVICE constexpr int threads() const { return 32 * warps; }
  /// Floats of shared memory that block_gemv reduces through.
  WATERWEIGHT_HOST_DEVICE constexpr int shared_floats() const { return warps * 16 * 8 * n_tiles; }
  WATERWEIGHT_HOST_DEVICE constexpr bool operator==(const gemv_policy& o) const {
    return warps == o.warps && n_tiles == o.n_tiles && unroll == o.unroll;
  }
};

/// A block's GEMV over output channels [row, row + 16) of W. Use: begin() before the activations
/// are ready (it requests the first weights), then finish(). T: activation type. Element: INT8 or
/// T. Requires K % 16 == 0 and 16-byte aligned rows of W. Rows at or above W's are skipped.
template <class T, class Element, int Warps, int NTiles, int Unroll>
class block_gemv {
 public:
  static constexpr gemv_policy kPolicy{Warps, NTiles, Unroll};
  static constexpr int kChunk = 64;  ///< elements of K per warp step: 4 lanes x 16

  __device__ block_gemv(const detail::weight_operand<Element>& w, int row)
      : w_(w), row_(row), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  /// Requests this warp's first chunks of weights. Touches nothing but weights.
  __device__ __forceinline__ void begin() { load_weights(warp_ * kChunk); }

  /// Multiplies, reduces and stores y(m, n) = epilogue(...) for m < M through `store(m, n, value)`.
  /// `reduction`: kPolicy.shared_floats() of shared memory.
  template <class Prologue, class Epilogue, class Store>
  __device__ __forceinline__ void finish(const Prologue& prologue, int m_count, float* reduction,
                                         const Epilogue& epilogue, const Store& store) {
    float acc[NTiles][4] = {};
    constexpr int kStride = Warps * kChunk;
    for (int k0 = warp_ * kChunk; k0 < w_.cols; k0 += kStride * Unroll) {
      if (k0 != warp_ * kChunk) load_weights(k0);
      multiply(prologue, m_count, k0, acc);
    }
    reduce_and_store(acc, m_count, reduction, epilogue, store);
  }

 private:
  __device__ __forceinline__ void load_weights(int k0) {
    const int group = lane_ / 4, k_lane = (lane_ % 4) * 16;
#pragma unroll
    for (int u = 0; u < Unroll; ++u) {
      const int k = k0 + u * Warps * kChunk + k_lane;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = row_ + group + 8 * half;
        if (k < w_.cols && n < w_.rows) {
          const Element* address = w_.data + n * w_.ld + k;
#pragma unroll
          for (int v = 0; v < detail::weight_group<Element>::kVectors; ++v) {
            weights_[u][half].raw[v] =
                detail::load_streaming(reinterpret_cast<const uint4*>(address) + v);
          }
        } else {
          weights_[u][half].clear();
        }
      }
    }
  }

  template <class Prologue>
  __device__ __forceinline__ void multiply(const Prologue& prologue, int m_count, int k0,
                                           float (&acc)[NTiles][4]) const {
    const int group = lane_ / 4, k_lane = (lane_ % 4) * 16;
#pragma unroll
    for (int u = 0; u < Unroll; ++u) {
      const int chunk = k0 + u * Warps * kChunk, k = chunk + k_lane;
      if (chunk >= w_.cols) return;
      uint4 x[NTiles][2];
#pragma unroll
      for (int j = 0; j < NTiles; ++j) {
        const int m = 8 * j + group;
        x[j][0] = x[j][1] = make_uint4(0, 0, 0, 0);
        if (m < m_count && k < w_.cols) prologue.load16(m, k, x[j]);
      }
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        std::uint32_t a[4];
        weights_[u][0].template four<T>(step, a[0], a[2]);
        weights_[u][1].template four<T>(step, a[1], a[3]);
#pragma unroll
        for (int j = 0; j < NTiles; ++j) {
          const uint4& vector = x[j][step / 2];
          detail::mma_m16n8k16<T>(acc[j], a, step % 2 == 0 ? vector.x : vector.z,
                                  step % 2 == 0 ? vector.y : vector.w);
        }
      }
    }
  }

  template <class Epilogue, class Store>
  __device__ __forceinline__ void reduce_and_store(const float (&acc)[NTiles][4], int m_count,
                                                   float* reduction, const Epilogue& epilogue,
                                                   const Store& store) const {
    constexpr int kTokens = 8 * NTiles, kTile = 16 * kTokens;
    // reduction[warp][token][channel]: channels adjacent, so that the threads of a warp store
    // neighbouring outputs of one row of Y.
    float* mine = reduction + warp_ * kTile;
    const int group = lane_ / 4, pair = (lane_ % 4) * 2;
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + pair + i % 2, channel = group + 8 * (i / 2);
        mine[token * 16 + channel] = acc[j][i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < m_count * 16; i += 32 * Warps) {
      const int m = i / 16, n = row_ + i % 16;
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < Warps; ++warp) sum += reduction[warp * kTile + i];
      if (n < w_.rows) store(m, n, epilogue(detail::apply_scale(w_, sum, n), m, n));
    }
  }

  const detail::weight_operand<Element>& w_;
  int row_;
  int warp_;
  int lane_;
  detail::weight_group<Element> weights_[Unroll][2];
};

WATERWEIGHT_ARCH_NAMESPACE_END
