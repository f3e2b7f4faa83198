// Values that say themselves whether they have arrived, for blocks of one running grid that pass
// vectors to each other.
//
// A pair is 8 bytes: 32 bits of payload and the epoch it belongs to, stored and loaded as one word.
// Who reads the epoch it waits for has the payload too: no barrier, no fence, one trip through L2
// instead of two. A buffer may be written again (with a later epoch) once all its readers are known
// to have read it, for instance because what they computed from it has arrived.
#pragma once

#include <cstdint>

#include <waterweight/config.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN

/// 32 bits and their epoch.
using flagged_word = uint2;  // x: payload, y: epoch

__device__ __forceinline__ void store_flagged(flagged_word* target, std::uint32_t payload,
                                              std::uint32_t epoch) {
  const std::uint64_t word = std::uint64_t{epoch} << 32 | payload;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(target), "l"(word) : "memory");
}

__device__ __forceinline__ flagged_word load_flagged(const flagged_word* source) {
  std::uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(source) : "memory");
  return make_uint2(static_cast<std::uint32_t>(word), static_cast<std::uint32_t>(word >> 32));
}

/// Two neighbouring words, 16-byte aligned: (payload, epoch, payload, epoch).
__device__ __forceinline__ uint4 load_flagged_pair(const flagged_word* source) {
  std::uint64_t first, second;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(first), "=l"(second)
               : "l"(source)
               : "memory");
  return make_uint4(static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(first >> 32),
                    static_cast<std::uint32_t>(second), static_cast<std::uint32_t>(second >> 32));
}

/// Returns when the word of one of the warp's lanes is there. For a vector that is waited for long
/// before it comes: the rest cannot be far then, and before that, asking for all of it again and
/// again would only heat the chip and be in the way. By all lanes of a warp.
__device__ __forceinline__ void await_flagged(const flagged_word* word, std::uint32_t epoch) {
  while (!__any_sync(0xffffffffu, load_flagged(word).y == epoch)) __nanosleep(200);
}

/// words[j] = source[j * Stride] for j < present (at most N), all of this epoch: asks for all of
/// them at once, and again for those that are missing. The others become 0.
template <int N, int Stride>
__device__ __forceinline__ void wait_flagged(const flagged_word* source, int present,
                                             std::uint32_t epoch, std::uint32_t (&words)[N]) {
  flagged_word loaded[N];
#pragma unroll
  for (int j = 0; j < N; ++j) loaded[j] = make_uint2(0, j < present ? ~epoch : epoch);
  bool missing;
  do {
    missing = false;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (loaded[j].y != epoch) loaded[j] = load_flagged(source + j * Stride);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      words[j] = loaded[j].x;
      missing = missing || loaded[j].y != epoch;
    }
  } while (missing);
}

/// The same for pairs of words: (words[j].x, words[j].y) = source[2 * j * Stride] and the next one.
template <int N, int Stride>
__device__ __forceinline__ void wait_flagged_pairs(const flagged_word* source, int present,
                                                   std::uint32_t epoch, uint2 (&words)[N]) {
  uint4 loaded[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    loaded[j] = make_uint4(0, j < present ? ~epoch : epoch, 0, epoch);
  }
  bool missing;
  do {
    missing = false;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (loaded[j].y != epoch || loaded[j].w != epoch) {
        loaded[j] = load_flagged_pair(source + 2 * j * Stride);
      }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      words[j] = make_uint2(loaded[j].x, loaded[j].z);
      missing = missing || loaded[j].y != epoch || loaded[j].w != epoch;
    }
  } while (missing);
}

WATERWEIGHT_ARCH_NAMESPACE_END
