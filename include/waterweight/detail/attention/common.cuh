// Shared by the attention kernels: argument checks, head_dim dispatch, tile copies.
#pragma once

#include <cstdint>

#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/detail/arch/memory.cuh>
#include <waterweight/detail/arch/mma.cuh>
#include <waterweight/detail/launch.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

/// Calls f(std::integral_constant<int, HeadDim>) for a supported head_dim.
template <class F>
cudaError_t dispatch_head_dim(int head_dim, const F& f) {
  switch (head_dim) {
    case 32:
      return f(std::integral_constant<int, 32>{});
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 80:
      return f(std::integral_constant<int, 80>{});
    case 96:
      return f(std::integral_constant<int, 96>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
    case 256:
      return f(std::integral_constant<int, 256>{});
    default:
      return cudaErrorInvalidValue;
  }
}

/// Non-null, positive sizes, 16-byte aligned vectors, grid limits.
template <class T>
bool valid_heads(const heads_view<T>& view) {
  const auto whole_vectors = [](std::int64_t stride) { return stride >= 0 && stride % 8 == 0; };
  return view.data != nullptr && view.batch >= 1 && view.batch <= 65535 && view.tokens >= 1 &&
         view.heads >= 1 && view.heads <= 65535 && view.head_dim >= 1 &&
         is_aligned(view.data, 16) && whole_vectors(view.batch_stride) &&
         whole_vectors(view.token_stride) && whole_vectors(view.head_stride);
}

/// `a` and `b` hold the same (sequence, token, head_dim) grid.
template <class A, class B>
bool same_tokens(const heads_view<A>& a, const heads_view<B>& b) {
  return a.batch == b.batch && a.tokens == b.tokens && a.head_dim == b.head_dim;
}

inline bool valid_rotary(const rotary_view& rotary, int head_dim) {
  return rotary.dims >= 0 && rotary.dims % 2 == 0 && rotary.dims <= head_dim &&
         (rotary.dims == 0 || rotary.inv_freq != nullptr);
}

/// Rows of HeadDim elements in shared memory, padded by 16 bytes: eight rows of an ldmatrix then
/// start in eight different groups of banks for every supported HeadDim.
template <int HeadDim>
inline constexpr int kPaddedHeadDim = HeadDim + 8;

/// Starts the copy of rows [row0, row0 + Rows) of one head; rows at or beyond `rows` become zeros.
/// A thread keeps to its column, a constant number of rows apart, which spares most of the address
/// arithmetic; where HeadDim does not divide the threads a few of them stand aside.
template <int HeadDim, int Rows, int Threads, class T>
__device__ __forceinline__ void copy_rows_async(T* tile, const T* head, std::int64_t row_stride,
                                                int row0, int rows) {
  constexpr int kVectors = HeadDim / 8, kRows = Threads / kVectors;  // rows at a time
  const int first = threadIdx.x / kVectors, column = threadIdx.x % kVectors * 8;
  if (Threads % kVectors != 0 && first >= kRows) return;
  const T* source = head + (row0 + first) * row_stride + column;
  T* const target = tile + first * kPaddedHeadDim<HeadDim> + column;
#pragma unroll
  for (int base = 0; base < Rows; base += kRows, source += kRows * row_stride) {
    if (Rows % kRows != 0 && base + kRows > Rows && base + first >= Rows) break;
    const bool inside = row0 + base + first < rows;
    cp_async_16(target + base * kPaddedHeadDim<HeadDim>, source, inside ? 16 : 0);
  }
}

/// A fragment (16 rows from row0, 16 columns from column0) of a padded tile.
template <int HeadDim, class T>
__device__ __forceinline__ void load_a_fragment(std::uint32_t (&a)[4], const T* tile, int row0,
                                                int column0) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4(a, tile + (row0 + lane % 16) * kPaddedHeadDim<HeadDim> + column0 + lane / 16 * 8);
}

/// B fragments of two n8 tiles whose columns are 16 rows of a padded tile: b[0], b[1] for rows
/// row0 .. row0 + 7, b[2], b[3] for the next eight.
template <int HeadDim, class T>
__device__ __forceinline__ void load_b_fragments(std::uint32_t (&b)[4], const T* tile, int row0,
                                                 int column0) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4(b, tile + (row0 + lane % 8 + lane / 16 * 8) * kPaddedHeadDim<HeadDim> + column0 +
                     lane / 8 % 2 * 8);
}

/// B fragments of two n8 tiles whose k are 16 rows of a padded tile (so: transposed): b[0], b[1]
/// for columns column0 .. column0 + 7, b[2], b[3] for the next eight.
template <int HeadDim, class T>
__device__ __forceinline__ void load_b_fragments_trans(std::uint32_t (&b)[4], const T* tile,
                                                       int row0, int column0) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4_trans(b,
                    tile + (row0 + lane % 16) * kPaddedHeadDim<HeadDim> + column0 + lane / 16 * 8);
}

/// Tokens of sequence b: its own length, or all.
__device__ __forceinline__ int sequence_length(const std::int32_t* lengths, int b, int tokens) {
  return lengths == nullptr ? tokens : min(max(lengths[b], 0), tokens);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
