// Block-level small-M GEMM: a block multiplies 16 output channels by up to 8 * NTiles tokens over a
// range of K.
//
// Weights are the A operand of mma.m16n8k16 (16 output rows), tokens the B operand (8 columns), so
// one token costs what eight cost. A dot product does not mind the order of K as long as both
// operands agree: a lane takes 16 consecutive weights of row g (and of row g + 8) and feeds four
// k16 steps from them, pairing them with the same 16 consecutive activations. Plain row-major
// [N, K] weights therefore need no repacking, and every weight load is a full 16 bytes.
//
// The warps of the block split K in chunks of 64, interleaved, and the partial sums meet in shared
// memory in warp order: the result does not depend on timing.
//
// Decoding is bound by bytes in flight. begin() requests Unroll chunks per warp before anything
// else is known; with Unroll * Warps * 64 >= K the whole tile is then on its way, and a block that
// waits for its activations (a programmatic dependency, a LayerNorm) keeps the memory busy
// meanwhile.
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
  /// Floats of shared memory that reduce() goes through for `m` tokens.
  WATERWEIGHT_HOST_DEVICE constexpr int reduction_floats(int m) const { return warps * 16 * m; }
  WATERWEIGHT_HOST_DEVICE constexpr bool operator==(const gemv_policy& o) const {
    return warps == o.warps && n_tiles == o.n_tiles && unroll == o.unroll;
  }
};

/// A block's GEMV over output channels [row, row + 16) of W and K in [k_begin, k_end). Use: begin()
/// before the activations are ready, accumulate() once they are, reduce() for the sums.
/// T: activation type. Element: std::int8_t or T. Needs 16-byte aligned rows of W, k_begin and
/// k_end multiples of 16. Rows at or above W's count as zeros.
template <class T, class Element, int Warps, int NTiles, int Unroll>
class block_gemv {
 public:
  static constexpr gemv_policy kPolicy{Warps, NTiles, Unroll};
  static constexpr int kChunk = 64;  ///< elements of K per warp step: 4 lanes x 16

  __device__ __forceinline__ block_gemv(const detail::weight_operand<Element>& w, int row,
                                        int k_begin, int k_end)
      : row_(row), rows_(w.rows), k_begin_(k_begin), k_end_(k_end) {
    const int n = min(row + group(), w.rows - 1);
    base_ = w.data + n * w.ld + k_lane();
    // Row g + 8; past the last row any valid address will do, its loads are skipped.
    second_ = row + group() + 8 < w.rows ? 8 * w.ld : 0;
  }

  /// The output channel this thread finishes in reduce(): load its scale and bias early.
  __device__ __forceinline__ int channel() const { return row_ + threadIdx.x % 16; }

  /// Requests this warp's first chunks of weights. Touches nothing but weights.
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int u = 0; u < Unroll; ++u) load(u, first_chunk() + u * kStride);
  }

  /// Adds the products with `activations.load16(m, k, uint4 (&)[2])`: X[m, k .. k + 15] as T,
  /// called for m < m_count and multiples of 16.
  template <class Activations>
  __device__ __forceinline__ void accumulate(const Activations& activations, int m_count) {
    for (int k0 = first_chunk(); k0 < k_end_; k0 += kStride * Unroll) {
#pragma unroll
      for (int u = 0; u < Unroll; ++u) {
        const int k = k0 + u * kStride;
        if (k < k_end_) multiply(u, activations, m_count, k + k_lane());
        // The registers are free again: keep as much in flight as before.
        load(u, k + kStride * Unroll);
      }
    }
  }

  /// Sums the warps' parts and calls f(m, n, sum) once per output; the thread that gets (m, n) has
  /// n == channel(). `scratch`: kPolicy.reduction_floats(m_count) of shared memory nobody else
  /// uses.
  template <class F>
  __device__ __forceinline__ void reduce(int m_count, float* scratch, const F& f) const {
    // scratch[warp][token][channel]: channels adjacent, so that neighbouring threads finish
    // neighbouring outputs of one row of Y.
    const int tile = 16 * m_count;
    float* mine = scratch + threadIdx.x / 32 * tile;
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + (threadIdx.x % 4) * 2 + i % 2;
        if (token < m_count) mine[token * 16 + group() + 8 * (i / 2)] = acc_[j][i];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < tile; i += 32 * Warps) {
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < Warps; ++warp) sum += scratch[warp * tile + i];
      if (channel() < rows_) f(i / 16, channel(), sum);
    }
  }

 private:
  static constexpr int kStride = Warps * kChunk;

  __device__ static __forceinline__ int group() { return threadIdx.x % 32 / 4; }
  __device__ static __forceinline__ int k_lane() { return threadIdx.x % 4 * 16; }
  __device__ __forceinline__ int first_chunk() const {
    return k_begin_ + static_cast<int>(threadIdx.x) / 32 * kChunk;
  }

  __device__ __forceinline__ void load(int u, int k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (k + k_lane() < k_end_ && row_ + group() + 8 * half < rows_) {
        const Element* address = base_ + k + half * second_;
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

  template <class Activations>
  __device__ __forceinline__ void multiply(int u, const Activations& activations, int m_count,
                                           int k) {
    uint4 x[NTiles][2];
#pragma unroll
    for (int j = 0; j < NTiles; ++j) {
      const int m = 8 * j + group();
      x[j][0] = x[j][1] = make_uint4(0, 0, 0, 0);
      if (m < m_count && k < k_end_) activations.load16(m, k, x[j]);
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      std::uint32_t a[4];
      weights_[u][0].template four<T>(step, a[0], a[2]);
      weights_[u][1].template four<T>(step, a[1], a[3]);
#pragma unroll
      for (int j = 0; j < NTiles; ++j) {
        const uint4& vector = x[j][step / 2];
        detail::mma_m16n8k16<T>(acc_[j], a, step % 2 == 0 ? vector.x : vector.z,
                                step % 2 == 0 ? vector.y : vector.w);
      }
    }
  }

  const Element* base_;
  std::int64_t second_;
  int row_, rows_, k_begin_, k_end_;
  detail::weight_group<Element> weights_[Unroll][2];
  float acc_[NTiles][4] = {};
};

WATERWEIGHT_ARCH_NAMESPACE_END
