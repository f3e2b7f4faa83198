// The host quantizer: hand-computed rows, its error bound, and the rows no scale fits.
#include <waterweight/reference/quantize.hpp>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include <waterweight/reference/float16.hpp>

namespace {

namespace ref = waterweight::reference;
using waterweight::int8_weight_view;
using waterweight::matrix_view;
using waterweight::mutable_int8_weight_view;

constexpr std::int8_t kPoison = 99;

template <class T>
struct Quantized {
  Quantized(const std::vector<T>& w, std::int64_t rows, std::int64_t cols, std::int64_t ld)
      : q(static_cast<std::size_t>(rows * (cols + 2)), kPoison), scale(rows, -1.0f) {
    view = {q.data(), scale.data(), rows, cols, cols + 2};
    first_bad = ref::quantize_per_channel(matrix_view<const T>{w.data(), rows, cols, ld}, view);
  }
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  mutable_int8_weight_view view;
  std::int64_t first_bad;
};

TEST(Quantize, HandComputedRows) {
  // Row 0: absmax 127, scale 1, halves go to even. Row 1: absmax 0.5. Row 2: zeros.
  const std::vector<float> w{127, 0.5f,   1.5f, -2.5f, -127, 0.25f, -0.5f, 0.125f,
                             0,   0.001f, 0,    0,     0,    0,     0};
  const Quantized<float> r(w, 3, 5, 5);
  EXPECT_EQ(r.first_bad, -1);
  EXPECT_EQ(r.scale[0], 1.0f);
  EXPECT_EQ(r.scale[1], 0.5f / 127.0f);
  EXPECT_EQ(r.scale[2], 0.0f);
  const std::vector<std::int8_t> expected{127, 0,    2,  -2, -127, kPoison, kPoison,
                                          64,  -127, 32, 0,  0,    kPoison, kPoison,
                                          0,   0,    0,  0,  0,    kPoison, kPoison};
  EXPECT_EQ(r.q, expected);
}

template <class T>
void expect_error_bound(double magnitude) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal(0, magnitude);
  const std::int64_t rows = 37, cols = 131, ld = 140;
  std::vector<T> w(rows * ld);
  for (T& x : w) x = static_cast<T>(normal(random));
  const Quantized<T> r(w, rows, cols, ld);
  EXPECT_EQ(r.first_bad, -1);
  std::vector<double> back(rows * cols);
  ref::dequantize(static_cast<int8_weight_view>(r.view),
                  matrix_view<double>{back.data(), rows, cols, cols});
  for (std::int64_t n = 0; n < rows; ++n) {
    int largest = 0;
    for (std::int64_t k = 0; k < cols; ++k) {
      const int q = r.q[n * (cols + 2) + k];
      largest = std::max(largest, std::abs(q));
      EXPECT_NEAR(back[n * cols + k], static_cast<float>(w[n * ld + k]), 0.50001 * r.scale[n]);
    }
    EXPECT_EQ(largest, 127);  // the largest magnitude of a row uses the whole range
  }
}

TEST(Quantize, ErrorIsWithinHalfAStep) {
  expect_error_bound<float>(1.0);
  expect_error_bound<double>(1e-3);
  expect_error_bound<ref::float16>(0.02);
  expect_error_bound<ref::bfloat16>(1e30);
}

TEST(Quantize, RowsWithNanOrInfinityGiveNanScaleAndTheLowestIsReported) {
  std::vector<float> w(6 * 3, 1.0f);
  w[4 * 3 + 1] = std::numeric_limits<float>::quiet_NaN();
  w[2 * 3 + 2] = -std::numeric_limits<float>::infinity();
  w[2 * 3 + 0] = std::numeric_limits<float>::quiet_NaN();
  const Quantized<float> r(w, 6, 3, 3);
  EXPECT_EQ(r.first_bad, 2);
  for (int n = 0; n < 6; ++n) {
    const bool bad = n == 2 || n == 4;
    EXPECT_EQ(std::isnan(r.scale[n]), bad) << n;
    for (int k = 0; k < 3; ++k) EXPECT_EQ(r.q[n * 5 + k], bad ? 0 : 127) << n;
  }
}

TEST(Quantize, ExtremeMagnitudesNeverGiveNanOrOverflow) {
  for (float absmax = FLT_MAX; absmax > 0; absmax *= 0.37f) {
    const std::vector<float> w{absmax, -absmax, absmax * 0.7f, -absmax * 0.3f};
    const Quantized<float> r(w, 1, 4, 4);
    EXPECT_EQ(r.first_bad, -1);
    EXPECT_TRUE(r.scale[0] == 0 || r.scale[0] >= FLT_MIN) << absmax;
    if (r.scale[0] == 0) {
      EXPECT_LT(absmax, 127.0f * FLT_MIN);
      for (int k = 0; k < 4; ++k) EXPECT_EQ(r.q[k], 0);
    } else {
      EXPECT_EQ(r.q[0], 127);
      EXPECT_EQ(r.q[1], -127);
      EXPECT_NEAR(r.q[2], 89, 0);
      EXPECT_NEAR(r.q[3], -38, 0);
    }
  }
}

TEST(Quantize, ADoubleBeyondFloatIsNotFinite) {
  const Quantized<double> r({1e39, 1.0}, 1, 2, 2);
  EXPECT_EQ(r.first_bad, 0);
  EXPECT_TRUE(std::isnan(r.scale[0]));
}

}  // namespace
