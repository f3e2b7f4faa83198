// The host kernels and GEMM against the library's reference in double, for every weight type.
#include <gtest/gtest.h>
#include <waterweight/reference/epilogue.hpp>
#include <waterweight/reference/float16.hpp>
#include <waterweight/reference/gemm.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "examples/pythia/model/host_gemm.hpp"
#include "examples/pythia/model/host_kernel.hpp"

namespace {

using pythia::DType;
using pythia::Finish;
using pythia::kPanel;
using pythia::PackedLinear;
using pythia::ThreadPool;
using waterweight::matrix_view;
using waterweight::reference::bfloat16;
using waterweight::reference::float16;

constexpr float kPoison = -777.0f;

std::vector<float> normal(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

template <class T>
DType type_of();
template <>
DType type_of<float>() {
  return DType::f32;
}
template <>
DType type_of<float16>() {
  return DType::f16;
}
template <>
DType type_of<bfloat16>() {
  return DType::bf16;
}
template <>
DType type_of<std::int8_t>() {
  return DType::i8;
}

/// Random weights twice: packed, and as plain rows for the reference.
template <class T>
struct Linear {
  Linear(std::int64_t n, std::int64_t k) : rows(static_cast<std::size_t>(n * k)) {
    const bool int8 = type_of<T>() == DType::i8;
    const std::vector<float> values = normal(rows.size(), 3);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] =
          static_cast<T>(int8 ? std::fmax(-127.0f, std::fmin(127.0f, 40 * values[i])) : values[i]);
    }
    packed.rows = n;
    packed.cols = k;
    packed.type = type_of<T>();
    packed.bias = normal(static_cast<std::size_t>(n), 4);
    scale.assign(static_cast<std::size_t>(n), 1.0f);
    if (int8) {
      for (std::int64_t i = 0; i < n; ++i) scale[i] = 0.01f + 0.001f * static_cast<float>(i % 7);
      packed.scale = scale;
    }
    const std::int64_t panels = (n + kPanel - 1) / kPanel;
    std::vector<T> ordered(static_cast<std::size_t>(panels * k * kPanel), static_cast<T>(0.0f));
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t p = 0; p < k; ++p)
        ordered[(i / kPanel * k + p) * kPanel + i % kPanel] = rows[i * k + p];
    packed.panels.resize(ordered.size() * sizeof(T));
    std::memcpy(packed.panels.data(), ordered.data(), packed.panels.size());
  }
  std::vector<T> rows;
  std::vector<float> scale;
  PackedLinear packed;
};

struct Shape {
  std::int64_t m, n, k;
};

template <class T>
class HostGemm : public testing::Test {};
using WeightTypes = testing::Types<float, float16, bfloat16, std::int8_t>;
TYPED_TEST_SUITE(HostGemm, WeightTypes);

TYPED_TEST(HostGemm, MatchesTheReferenceForAnyShapeAndFinish) {
  ThreadPool pool(3);
  for (const Shape s :
       {Shape{1, 1, 1}, {3, 31, 7}, {5, 33, 257}, {8, 64, 300}, {129, 50, 129}, {300, 97, 513}}) {
    const Linear<TypeParam> w(s.n, s.k);
    const std::vector<float> x = normal(static_cast<std::size_t>(s.m * s.k), 5);
    for (const Finish finish : {Finish::store, Finish::gelu_erf, Finish::gelu_tanh, Finish::add}) {
      const auto elements = static_cast<std::size_t>(s.m * s.n);
      std::vector<float> y(elements + 1, finish == Finish::add ? 2.0f : kPoison);
      y[elements] = kPoison;
      std::vector<double> expected(elements);
      waterweight::reference::gemm<double>(
          matrix_view<const float>{x.data(), s.m, s.k, s.k},
          matrix_view<const TypeParam>{w.rows.data(), s.n, s.k, s.k},
          matrix_view<double>{expected.data(), s.m, s.n, s.n},
          [&](double sum, std::int64_t, std::int64_t n) {
            const double value = sum * w.scale[n] + w.packed.bias[n];
            if (finish == Finish::gelu_erf) return waterweight::reference::gelu_erf(value);
            if (finish == Finish::gelu_tanh) return waterweight::reference::gelu_tanh(value);
            return finish == Finish::add ? value + 2 : value;
          });
      pythia::host_gemm(pool, x.data(), s.m, w.packed, y.data(), finish);
      const double tolerance = 1e-5 * std::sqrt(static_cast<double>(s.k)) + 1e-5;
      for (std::size_t i = 0; i < elements; ++i) ASSERT_NEAR(y[i], expected[i], tolerance) << i;
      ASSERT_EQ(y[elements], kPoison);
    }
  }
}

TYPED_TEST(HostGemm, ARowDependsNeitherOnTheOthersNorOnTheThreads) {
  const std::int64_t m = 200, n = 130, k = 300;
  const Linear<TypeParam> w(n, k);
  const std::vector<float> x = normal(m * k, 6);
  std::vector<float> together(m * n), serial(m * n), alone(n);
  ThreadPool many(4), one(1);
  pythia::host_gemm(many, x.data(), m, w.packed, together.data(), Finish::store);
  pythia::host_gemm(one, x.data(), m, w.packed, serial.data(), Finish::store);
  EXPECT_EQ(together, serial);
  for (std::int64_t row = 0; row < m; row += 13) {
    pythia::host_gemm(one, x.data() + row * k, 1, w.packed, alone.data(), Finish::store);
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + row * n)) << row;
  }
}

TEST(HostKernels, EverySupportedSetMultiplies) {
  const std::int64_t rows = 23, k = 37, ldx = 40, ldy = 48;
  const std::vector<float> x = normal(rows * ldx, 7), panel = normal(k * kPanel, 8);
  for (const pythia::HostKernels* kernels : pythia::supported_host_kernels()) {
    SCOPED_TRACE(kernels->name);
    std::vector<float> y(rows * ldy, 0.5f);
    kernels->multiply(x.data(), ldx, rows, k, panel.data(), y.data(), ldy);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < ldy; ++j) {
        double expected = 0.5;
        if (j < kPanel) {
          for (std::int64_t p = 0; p < k; ++p)
            expected += double{x[i * ldx + p]} * panel[p * kPanel + j];
        }
        ASSERT_NEAR(y[i * ldy + j], expected, j < kPanel ? 1e-5 : 0) << i << " " << j;
      }
    }
  }
}

TEST(HostKernels, EverySupportedSetWidensEveryPattern) {
  std::vector<std::uint16_t> bits(0x10000);
  std::vector<std::int8_t> bytes(256);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::int8_t>(i);
  const auto same = [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; };
  for (const pythia::HostKernels* kernels : pythia::supported_host_kernels()) {
    SCOPED_TRACE(kernels->name);
    std::vector<float> f16(bits.size()), bf16(bits.size()), i8(bytes.size());
    kernels->widen(DType::f16, bits.data(), static_cast<std::int64_t>(bits.size()), f16.data());
    kernels->widen(DType::bf16, bits.data(), static_cast<std::int64_t>(bits.size()), bf16.data());
    kernels->widen(DType::i8, bytes.data(), static_cast<std::int64_t>(bytes.size()), i8.data());
    for (std::size_t i = 0; i < bits.size(); ++i) {
      ASSERT_TRUE(same(f16[i], float16::from_bits(bits[i]))) << i;
      ASSERT_TRUE(same(bf16[i], bfloat16::from_bits(bits[i]))) << i;
    }
    for (std::size_t i = 0; i < bytes.size(); ++i) ASSERT_EQ(i8[i], bytes[i]);
  }
}

TEST(ThreadPool, RunsEveryIndexOnceAndPassesExceptionsOn) {
  ThreadPool pool(4);
  for (int round = 0; round < 50; ++round) {
    std::vector<int> runs(101, 0);
    pool.parallel_for(101, [&](std::int64_t i, int worker) {
      ASSERT_TRUE(worker >= 0 && worker < pool.size());
      ++runs[i];
    });
    EXPECT_EQ(runs, std::vector<int>(101, 1));
    EXPECT_THROW(pool.parallel_for(64,
                                   [](std::int64_t i, int) {
                                     if (i == 40) throw std::runtime_error("x");
                                   }),
                 std::runtime_error);
  }
  pool.parallel_for(0, [](std::int64_t, int) { FAIL(); });
}

}  // namespace
