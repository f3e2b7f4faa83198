// The host GEMM and its epilogues against hand-computed numbers.
#include <waterweight/reference/gemm.hpp>

#include <cmath>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <waterweight/reference/epilogue.hpp>
#include <waterweight/reference/float16.hpp>

namespace {

namespace ref = waterweight::reference;
using waterweight::int8_weight_view;
using waterweight::matrix_view;

constexpr double kPoison = -777;

// x [2, 3] and w [2, 3] with a column of padding each; x w^T = [[-2, 14], [-1, 35]].
const std::vector<double> kX{1, 2, 3, kPoison, 4, 5, 6, kPoison};
const std::vector<double> kW{0.5, 2, -2.1666666666666665, kPoison, 1, 5, 1, kPoison};

template <class Epilogue>
std::vector<double> run(const std::vector<double>& w, Epilogue epilogue) {
  std::vector<double> y(2 * 3, kPoison);
  ref::gemm<double>(matrix_view<const double>{kX.data(), 2, 3, 4},
                    matrix_view<const double>{w.data(), 2, 3, 4},
                    matrix_view<double>{y.data(), 2, 2, 3}, epilogue);
  EXPECT_EQ(y[2], kPoison);
  EXPECT_EQ(y[5], kPoison);
  return {y[0], y[1], y[3], y[4]};
}

void expect_near(const std::vector<double>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-9) << i;
}

TEST(Gemm, HandComputed) { expect_near(run(kW, ref::identity{}), {-2, 14, -1, 35}); }

TEST(Gemm, Epilogues) {
  const std::vector<float> b{3, -14.5f};
  const std::vector<double> residual{10, 20, kPoison, 30, 40, kPoison};
  expect_near(run(kW, ref::bias<float>{b.data()}), {1, -0.5, 2, 20.5});
  expect_near(run(kW, ref::bias_residual<float, double>{b.data(), {residual.data(), 2, 2, 3}}),
              {11, 19.5, 32, 60.5});
  // Values of x * Phi(x) and of its tanh approximation from tables.
  expect_near(run(kW, ref::bias_gelu_erf<float>{b.data()}),
              {0.8413447460685429, -0.15426876936299347, 1.9544997361036416, 20.5});
  expect_near(run(kW, ref::bias_gelu_tanh<float>{b.data()}),
              {0.8411919906082768, -0.15428599017485606, 1.954597694087775, 20.5});
}

TEST(Gemm, Int8ScaleIsAppliedOnceToTheExactSum) {
  const std::vector<std::int8_t> q{127, -127, 3, 11, 0, 0, 0, 11};
  const std::vector<float> scale{0.1f, 0.0f};
  const std::vector<float> b{1, 2};
  std::vector<ref::float16> x(kX.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = ref::float16(kX[i]);
  std::vector<float> y(4, -1);
  ref::gemm<float>(matrix_view<const ref::float16>{x.data(), 2, 3, 4},
                   int8_weight_view{q.data(), scale.data(), 2, 3, 4},
                   matrix_view<float>{y.data(), 2, 2, 2}, ref::bias<float>{b.data()});
  EXPECT_EQ(y[0], 0.1f * (127 - 254 + 9) + 1);
  EXPECT_EQ(y[2], 0.1f * (508 - 635 + 18) + 1);
  EXPECT_EQ(y[1], 2);
  EXPECT_EQ(y[3], 2);
}

TEST(Gemm, NanScaleReachesTheOutput) {
  const std::vector<std::int8_t> q{0, 0, 0, 0};
  const std::vector<float> scale{std::nanf("")};
  std::vector<double> y(2, 0);
  ref::gemm<double>(matrix_view<const double>{kX.data(), 2, 3, 4},
                    int8_weight_view{q.data(), scale.data(), 1, 3, 4},
                    matrix_view<double>{y.data(), 2, 1, 1}, ref::identity{});
  EXPECT_TRUE(std::isnan(y[0]) && std::isnan(y[1]));
}

TEST(Gemm, OutputIsRoundedOnceToItsType) {
  const std::vector<float> x{1, 1};
  const std::vector<float> w{1, 0x1p-11f + 0x1p-20f};
  std::vector<ref::float16> y(1);
  ref::gemm<double>(matrix_view<const float>{x.data(), 1, 2, 2},
                    matrix_view<const float>{w.data(), 1, 2, 2},
                    matrix_view<ref::float16>{y.data(), 1, 1, 1}, ref::identity{});
  EXPECT_EQ(y[0].bits, 0x3c01);
}

}  // namespace
