// Products of tensor cores: A is 16 rows, B 8 columns, 32 bytes of K; C and D as mma.sync deals
// them out to lanes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "tests/emulator/warp.hpp"

namespace emulator {

/// d += A x B. product(a, b): of the elements in a word of A and one of B.
template <class Sum, class D, class Product>
void multiply(D* const (&d)[4], std::initializer_list<std::uint32_t> words, Product product) {
  const auto* const table = together(kMultiply, words);
  const int row = current->lane / 4, pair = current->lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower = i / 2, column = 2 * pair + i % 2;
    Sum sum = 0;
    for (int k = 0; k < 4; ++k) {
      for (int half = 0; half < 2; ++half) {
        sum += product(table[4 * row + k][lower + 2 * half], table[4 * column + k][4 + half]);
      }
    }
    *d[i] = static_cast<D>(*d[i] + sum);
  }
}

inline void mma_s8(int& d0, int& d1, int& d2, int& d3, std::uint32_t a0, std::uint32_t a1,
                   std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  int* const d[4] = {&d0, &d1, &d2, &d3};
  multiply<int>(d, {a0, a1, a2, a3, b0, b1}, [](std::uint32_t a, std::uint32_t b) {
    int sum = 0;
    for (int shift = 0; shift < 32; shift += 8) {
      sum += static_cast<std::int8_t>(a >> shift) * static_cast<std::int8_t>(b >> shift);
    }
    return sum;
  });
}

/// All values of a 16-bit type: its own conversion is slow on the host.
template <class T, class Raw>
std::vector<double> all_values() {
  std::vector<double> values(1 << 16);
  for (std::size_t bits = 0; bits < values.size(); ++bits) {
    Raw raw;
    raw.x = static_cast<unsigned short>(bits);
    values[bits] = static_cast<float>(T(raw));
  }
  return values;
}

template <class T, class Raw>
void mma_16(float& d0, float& d1, float& d2, float& d3, std::uint32_t a0, std::uint32_t a1,
            std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  static const std::vector<double> table = all_values<T, Raw>();
  float* const d[4] = {&d0, &d1, &d2, &d3};
  multiply<double>(
      d, {a0, a1, a2, a3, b0, b1}, [values = table.data()](std::uint32_t a, std::uint32_t b) {
        return values[a & 0xffff] * values[b & 0xffff] + values[a >> 16] * values[b >> 16];
      });
}

template <class... Operands>
void mma_f16(Operands&&... operands) {
  mma_16<__half, __half_raw>(operands...);
}
template <class... Operands>
void mma_bf16(Operands&&... operands) {
  mma_16<__nv_bfloat16, __nv_bfloat16_raw>(operands...);
}

}  // namespace emulator
