// The tensor memory accelerator: boxes of a row-major matrix copied to shared memory, swizzled,
// with zeros for what lies outside the matrix, and back. For sm_90 and newer.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Starts the copy of the map's box at (row, column) to shared address `target`; its bytes are
/// reported to `barrier`. By one thread.
__device__ __forceinline__ void tma_load(std::uint32_t target, const CUtensorMap& map, int row,
                                         int column, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

/// The same under an L2 policy.
__device__ __forceinline__ void tma_load(std::uint32_t target, const CUtensorMap& map, int row,
                                         int column, std::uint32_t barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}

/// Starts the copy of the box at (row, slab) of a map of tma_make_slab_map, under an L2 policy. By
/// one thread.
__device__ __forceinline__ void tma_load_slab(std::uint32_t target, const CUtensorMap& map, int row,
                                              int slab, std::uint32_t barrier,
                                              std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {0, 0, %2, %3}], [%4], %5;" ::"r"(target),
      "l"(&map), "r"(slab), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}

/// tma_load() into every block of the cluster whose bit is set in `blocks`, at the same addresses.
__device__ __forceinline__ void tma_load_multicast(std::uint32_t target, const CUtensorMap& map,
                                                   int row, int column, std::uint32_t barrier,
                                                   std::uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

/// Adds the copy of the box at (row, column) from shared address `source` to the calling thread's
/// group of stores. What others wrote there needs shared_to_async_fence and a barrier before. What
/// lies outside the matrix is not written.
__device__ __forceinline__ void tma_store(const CUtensorMap& map, int row, int column,
                                          std::uint32_t source) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
      "r"(column), "r"(row), "r"(source)
      : "memory");
}

/// Closes the group and starts its copies.
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until at most `Pending` of this thread's groups have still to read their sources.
template <int Pending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

/// What this thread wrote to shared memory is visible to copies started after the next barrier.
__device__ __forceinline__ void shared_to_async_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

template <class Element>
constexpr CUtensorMapDataType tma_type() {
  return std::is_same_v<Element, __half>          ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
         : std::is_same_v<Element, __nv_bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
         : std::is_same_v<Element, float>         ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                                  : CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

/// cuTensorMapEncodeTiled of the driver that is loaded, so that nothing has to link libcuda; null
/// where the driver has none.
inline decltype(&cuTensorMapEncodeTiled) tma_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              12000, cudaEnableDefault, &found);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

/// A map of boxes of `box_rows` x `box_cols` elements of a row-major matrix. A box's row is one
/// swizzle span: 64 or 128 bytes. Data and rows must be 16-byte aligned. L2 fetches `promotion`
/// from memory at a time. False: the driver takes no such map.
template <class Element>
bool tma_make_map(decltype(&cuTensorMapEncodeTiled) encode, const Element* data, std::int64_t rows,
                  std::int64_t cols, std::int64_t ld, int box_rows, int box_cols,
                  CUtensorMapL2promotion promotion, CUtensorMap* map) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(ld) * sizeof(Element)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status = encode(
      map, tma_type<Element>(), 2, const_cast<Element*>(data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE,
      box_cols * sizeof(Element) == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
      promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS;
}

/// In how many pieces a box of the map below has a slab of so many bytes, a multiple of 16; 0: in
/// none. A box has at most 256 elements in a dimension, of at most 8 bytes, and the fewer pieces
/// there are, the faster it is copied.
constexpr int tma_slab_pieces(std::int64_t bytes) {
  for (int pieces = 1; pieces <= 8; ++pieces) {
    if (bytes % (pieces * 16) == 0 && bytes / pieces <= 256 * 8) return pieces;
  }
  return 0;
}

/// A map of boxes of `box_rows` rows of one slab of a matrix whose rows are `slabs` slabs of
/// `slab_bytes` each, `ld_bytes` apart. In shared memory rows follow each other without a gap. Data
/// and rows must be 16-byte aligned. False: the driver takes no such map.
inline bool tma_make_slab_map(decltype(&cuTensorMapEncodeTiled) encode, const void* data,
                              std::int64_t rows, std::int64_t ld_bytes, int slabs, int slab_bytes,
                              int box_rows, CUtensorMap* map) {
  const auto pieces = static_cast<cuuint32_t>(tma_slab_pieces(slab_bytes));
  if (pieces == 0) return false;
  const cuuint64_t piece_bytes = static_cast<cuuint64_t>(slab_bytes) / pieces;
  const cuuint64_t sizes[4] = {piece_bytes / 8, pieces, static_cast<cuuint64_t>(slabs),
                               static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[3] = {piece_bytes, static_cast<cuuint64_t>(slab_bytes),
                                 static_cast<cuuint64_t>(ld_bytes)};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(piece_bytes / 8), pieces, 1,
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_FLOAT64, 4, const_cast<void*>(data), sizes, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
