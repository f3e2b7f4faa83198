// wgmma: a warpgroup's asynchronous matrix multiply, for sm_90a alone.
//
// D[64, Tokens] += A[64, 16] B[16, Tokens], 16-bit operands, fp32 sums. B lies in shared memory as
// Tokens rows of 64 K-elements (128 bytes) under the 128-byte swizzle; A lies there likewise or in
// registers. Warp w of the warpgroup holds rows 16w .. 16w + 15 of A and D; with lane = 4 * g + q
//   A: a[0] = A[g][2q, 2q+1]    a[1] = A[g+8][2q, 2q+1]
//      a[2] = A[g][2q+8, 2q+9]  a[3] = A[g+8][2q+8, 2q+9]
//   D: d[4j], d[4j+1] = D[g][8j + 2q, 8j + 2q + 1]    d[4j+2], d[4j+3] = the same of row g + 8
// (PTX ISA, "Asynchronous warpgroup level matrix instructions").
//
// Registers of A and D must not be touched between the instruction and the wait for its group.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include <waterweight/config.hpp>
#include <waterweight/detail/arch/register_limit.cuh>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Before the first wgmma after ordinary writes to registers of A or D.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most `Pending` committed groups are still running.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// Keeps the compiler from reading sums before the wait that precedes this.
template <int Count>
__device__ __forceinline__ void wgmma_pin(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Two 8x8 matrices of 16-bit elements in the layout of D, rows by pairs of columns, stored as
/// columns of 16 bytes: lane 8i + c, i < 2, supplies the shared address of column c of matrix i.
__device__ __forceinline__ void store_matrices_transposed(std::uint32_t column,
                                                          const std::uint32_t (&matrices)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(column),
               "r"(matrices[0]), "r"(matrices[1]));
}

/// Describes rows of 128 bytes under the 128-byte swizzle, which repeats every 8 rows = 1024 bytes.
/// `sixteens` is the shared address of the first element over 16: that of a multiple of 1024, plus
/// 2 for each k16 step.
__device__ __forceinline__ std::uint64_t wgmma_descriptor(std::uint32_t sixteens) {
  constexpr std::uint32_t kSwizzle128 = 1u << 30, kEightRows = 1024 >> 4, kUnusedStride = 1u << 16;
  return std::uint64_t{kSwizzle128 | kEightRows} << 32 | (kUnusedStride + sixteens);
}

// Operand lists: only the text and the number of registers of D differ between the shapes.
#define WATERWEIGHT_WGMMA_TEXT_16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WATERWEIGHT_WGMMA_TEXT_32 \
  WATERWEIGHT_WGMMA_TEXT_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WATERWEIGHT_WGMMA_TEXT_44 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43"
#define WATERWEIGHT_WGMMA_TEXT_64                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WATERWEIGHT_WGMMA_TEXT_88                                                    \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WATERWEIGHT_WGMMA_TEXT_128                                                               \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"             \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"             \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define WATERWEIGHT_WGMMA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WATERWEIGHT_WGMMA_D16(i)                                                     \
  WATERWEIGHT_WGMMA_D4(i), WATERWEIGHT_WGMMA_D4(i + 4), WATERWEIGHT_WGMMA_D4(i + 8), \
      WATERWEIGHT_WGMMA_D4(i + 12)
#define WATERWEIGHT_WGMMA_D32(i) WATERWEIGHT_WGMMA_D16(i), WATERWEIGHT_WGMMA_D16(i + 16)
#define WATERWEIGHT_WGMMA_D44(i)                                                        \
  WATERWEIGHT_WGMMA_D32(i), WATERWEIGHT_WGMMA_D4(i + 32), WATERWEIGHT_WGMMA_D4(i + 36), \
      WATERWEIGHT_WGMMA_D4(i + 40)
#define WATERWEIGHT_WGMMA_D64(i) WATERWEIGHT_WGMMA_D32(i), WATERWEIGHT_WGMMA_D32(i + 32)
#define WATERWEIGHT_WGMMA_D88(i)                                                         \
  WATERWEIGHT_WGMMA_D64(i), WATERWEIGHT_WGMMA_D16(i + 64), WATERWEIGHT_WGMMA_D4(i + 80), \
      WATERWEIGHT_WGMMA_D4(i + 84)
#define WATERWEIGHT_WGMMA_D128(i) WATERWEIGHT_WGMMA_D64(i), WATERWEIGHT_WGMMA_D64(i + 64)

// Two members of a specialisation of wgmma<T, Tokens>: A from registers, A from shared memory.
#define WATERWEIGHT_WGMMA(T, TYPE, TOKENS, TEXT, SUMS, A0, A1, A2, A3, B)                         \
  template <>                                                                                     \
  struct wgmma<T, TOKENS> {                                                                       \
    __device__ static __forceinline__ void multiply(float (&d)[TOKENS / 2],                       \
                                                    const std::uint32_t (&a)[4],                  \
                                                    std::uint64_t b) {                            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #TOKENS "k16.f32." TYPE "." TYPE " {" TEXT \
                   "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 0;"            \
                   : SUMS(0)                                                                      \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                         \
    }                                                                                             \
    __device__ static __forceinline__ void multiply(float (&d)[TOKENS / 2], std::uint64_t a,      \
                                                    std::uint64_t b) {                            \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #TOKENS "k16.f32." TYPE "." TYPE " {" TEXT \
                   "}, %" #A0 ", %" #A1 ", 1, 1, 1, 0, 0;"                                        \
                   : SUMS(0)                                                                      \
                   : "l"(a), "l"(b));                                                             \
    }                                                                                             \
  };
#define WATERWEIGHT_WGMMA_SHAPES(T, TYPE)                                                          \
  WATERWEIGHT_WGMMA(T, TYPE, 32, WATERWEIGHT_WGMMA_TEXT_16, WATERWEIGHT_WGMMA_D16, 16, 17, 18, 19, \
                    20)                                                                            \
  WATERWEIGHT_WGMMA(T, TYPE, 64, WATERWEIGHT_WGMMA_TEXT_32, WATERWEIGHT_WGMMA_D32, 32, 33, 34, 35, \
                    36)                                                                            \
  WATERWEIGHT_WGMMA(T, TYPE, 88, WATERWEIGHT_WGMMA_TEXT_32 WATERWEIGHT_WGMMA_TEXT_44,              \
                    WATERWEIGHT_WGMMA_D44, 44, 45, 46, 47, 48)                                     \
  WATERWEIGHT_WGMMA(T, TYPE, 128, WATERWEIGHT_WGMMA_TEXT_32 WATERWEIGHT_WGMMA_TEXT_64,             \
                    WATERWEIGHT_WGMMA_D64, 64, 65, 66, 67, 68)                                     \
  WATERWEIGHT_WGMMA(T, TYPE, 176,                                                                  \
                    WATERWEIGHT_WGMMA_TEXT_32 WATERWEIGHT_WGMMA_TEXT_64 WATERWEIGHT_WGMMA_TEXT_88, \
                    WATERWEIGHT_WGMMA_D88, 88, 89, 90, 91, 92)                                     \
  WATERWEIGHT_WGMMA(                                                                               \
      T, TYPE, 256,                                                                                \
      WATERWEIGHT_WGMMA_TEXT_32 WATERWEIGHT_WGMMA_TEXT_64 WATERWEIGHT_WGMMA_TEXT_128,              \
      WATERWEIGHT_WGMMA_D128, 128, 129, 130, 131, 132)

/// The instruction for operands of T (__half or __nv_bfloat16) and 32, 64, 88, 128, 176 or 256
/// tokens.
template <class T, int Tokens>
struct wgmma;
WATERWEIGHT_WGMMA_SHAPES(__half, "f16")
WATERWEIGHT_WGMMA_SHAPES(__nv_bfloat16, "bf16")

#undef WATERWEIGHT_WGMMA_SHAPES
#undef WATERWEIGHT_WGMMA_D128
#undef WATERWEIGHT_WGMMA_D88
#undef WATERWEIGHT_WGMMA_D64
#undef WATERWEIGHT_WGMMA_D44
#undef WATERWEIGHT_WGMMA_D32
#undef WATERWEIGHT_WGMMA_D16
#undef WATERWEIGHT_WGMMA_D4
#undef WATERWEIGHT_WGMMA_TEXT_128
#undef WATERWEIGHT_WGMMA_TEXT_88
#undef WATERWEIGHT_WGMMA_TEXT_64
#undef WATERWEIGHT_WGMMA_TEXT_44
#undef WATERWEIGHT_WGMMA_TEXT_32
#undef WATERWEIGHT_WGMMA_TEXT_16
#undef WATERWEIGHT_WGMMA

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
