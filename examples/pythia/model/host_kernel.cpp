#include "examples/pythia/model/host_kernel.hpp"

#include <cstring>

// The bodies below are forced inline into one wrapper per instruction set, so that the compiler
// vectorizes each copy for its own registers.
#define PYTHIA_INLINE inline __attribute__((always_inline))

// The sums of a tile live in registers only if its loops are unrolled, which -O2 does not do by
// itself.
#if defined(__clang__)
#define PYTHIA_UNROLL _Pragma("unroll")
#else
#define PYTHIA_UNROLL _Pragma("GCC unroll 16")
#endif

namespace pythia {
namespace {

/// `lanes` floats in a register.
template <int lanes>
struct Vector {
  typedef float type __attribute__((vector_size(4 * lanes)));
};

/// One register tile: `rows` x kPanel sums stay in vectors of `lanes` while k runs. Single vectors
/// are copied with memcpy because memory is aligned to floats only.
template <int lanes, int rows>
PYTHIA_INLINE void tile(const float* x, std::int64_t ldx, std::int64_t k, const float* panel,
                        float* y, std::int64_t ldy) {
  using vector = typename Vector<lanes>::type;
  constexpr int vectors = kPanel / lanes;
  vector sum[rows][vectors];
  PYTHIA_UNROLL for (int i = 0; i < rows; ++i) {
    PYTHIA_UNROLL for (int v = 0; v < vectors; ++v) {
      std::memcpy(&sum[i][v], y + i * ldy + v * lanes, sizeof(vector));
    }
  }
  for (std::int64_t p = 0; p < k; ++p) {
    vector w[vectors];
    PYTHIA_UNROLL for (int v = 0; v < vectors; ++v) {
      std::memcpy(&w[v], panel + p * kPanel + v * lanes, sizeof(vector));
    }
    PYTHIA_UNROLL for (int i = 0; i < rows; ++i) {
      const float scalar = x[i * ldx + p];
      PYTHIA_UNROLL for (int v = 0; v < vectors; ++v) sum[i][v] += scalar * w[v];
    }
  }
  PYTHIA_UNROLL for (int i = 0; i < rows; ++i) {
    PYTHIA_UNROLL for (int v = 0; v < vectors; ++v) {
      std::memcpy(y + i * ldy + v * lanes, &sum[i][v], sizeof(vector));
    }
  }
}

/// All rows, in tiles of `tile_rows`, then of half as many, down to one.
template <int lanes, int tile_rows>
PYTHIA_INLINE void multiply(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k,
                            const float* panel, float* y, std::int64_t ldy) {
  for (; rows >= tile_rows; rows -= tile_rows, x += tile_rows * ldx, y += tile_rows * ldy) {
    tile<lanes, tile_rows>(x, ldx, k, panel, y, ldy);
  }
  if constexpr (tile_rows > 1) multiply<lanes, tile_rows / 2>(x, ldx, rows, k, panel, y, ldy);
}

/// IEEE binary16 to binary32 without branches: see waterweight::reference::float16.
PYTHIA_INLINE void widen_f16(const std::uint16_t* in, float* out) {
  for (int i = 0; i < kPanel; ++i) {
    const std::uint32_t sign = static_cast<std::uint32_t>(in[i] & 0x8000) << 16;
    const std::uint32_t magnitude = static_cast<std::uint32_t>(in[i] & 0x7fff) << 13;
    float scaled;
    std::memcpy(&scaled, &magnitude, sizeof scaled);
    scaled *= 0x1p112f;
    std::uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    bits |= sign | (magnitude >= 0x7c00u << 13 ? 0x7f800000u : 0u);
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

PYTHIA_INLINE void widen_bf16(const std::uint16_t* in, float* out) {
  for (int i = 0; i < kPanel; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(in[i]) << 16;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

PYTHIA_INLINE void widen_i8(const std::int8_t* in, float* out) {
  for (int i = 0; i < kPanel; ++i) out[i] = in[i];
}

PYTHIA_INLINE void widen(DType type, const void* stored, std::int64_t count, float* out) {
  const auto* half = static_cast<const std::uint16_t*>(stored);
  const auto* byte = static_cast<const std::int8_t*>(stored);
  if (type == DType::f32) {
    std::memcpy(out, stored, static_cast<std::size_t>(count) * sizeof *out);
  } else if (type == DType::f16) {
    for (std::int64_t i = 0; i < count; i += kPanel) widen_f16(half + i, out + i);
  } else if (type == DType::bf16) {
    for (std::int64_t i = 0; i < count; i += kPanel) widen_bf16(half + i, out + i);
  } else {
    for (std::int64_t i = 0; i < count; i += kPanel) widen_i8(byte + i, out + i);
  }
}

// The tile of an instruction set fits its registers: 32 of 16 lanes, 16 of 8 lanes, 16 of 4 lanes.
#define PYTHIA_KERNELS(suffix, label, target_attribute, lanes, tile_rows)                      \
  target_attribute void multiply_##suffix(const float* x, std::int64_t ldx, std::int64_t rows, \
                                          std::int64_t k, const float* panel, float* y,        \
                                          std::int64_t ldy) {                                  \
    multiply<lanes, tile_rows>(x, ldx, rows, k, panel, y, ldy);                                \
  }                                                                                            \
  target_attribute void widen_##suffix(DType type, const void* stored, std::int64_t count,     \
                                       float* out) {                                           \
    widen(type, stored, count, out);                                                           \
  }                                                                                            \
  constexpr HostKernels kernels_##suffix{label, multiply_##suffix, widen_##suffix};

PYTHIA_KERNELS(baseline, "baseline", , 4, 1)
#if defined(__x86_64__)
PYTHIA_KERNELS(avx2, "AVX2", __attribute__((target("avx2,fma"))), 8, 2)
PYTHIA_KERNELS(avx512, "AVX-512", __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), 16,
               8)
#endif

std::vector<const HostKernels*> find_supported() {
  std::vector<const HostKernels*> supported{&kernels_baseline};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    supported.push_back(&kernels_avx2);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    supported.push_back(&kernels_avx512);
  }
#endif
  return supported;
}

}  // namespace

const std::vector<const HostKernels*>& supported_host_kernels() {
  static const std::vector<const HostKernels*> supported = find_supported();
  return supported;
}

const HostKernels& host_kernels() {
  static const HostKernels& best = *supported_host_kernels().back();
  return best;
}

}  // namespace pythia
