// w8a16_gemm and w16a16_gemm against the fp64 reference over random shapes, on every path.
#include <cmath>

#include <waterweight/reference/epilogue.hpp>
#include <waterweight/reference/gemm.hpp>
#include <waterweight/w8a16_gemm.cuh>

#include "tests/support/device.cuh"

namespace {

using waterweight::int8_weight_view;
using waterweight::matrix_view;
namespace reference = waterweight::reference;

enum class Kind { identity, bias, gelu_erf, gelu_tanh, residual };

struct Shape {
  int m, n, k;
  int x_pad, w_pad, y_pad;  // leading dimension = row + pad
};

/// Random problem, the fp64 answer, and for each output the bound on what fp32 accumulation and the
/// rounding of the result may cost.
template <class T, class Element, class Out>
class GemmProblem {
 public:
  GemmProblem(const Shape& shape, std::mt19937& generator)
      : s(shape),
        x(test::random_normal<T>(static_cast<std::size_t>(s.m) * x_ld(), 1.0f, generator)),
        w(static_cast<std::size_t>(s.n) * w_ld()),
        scale(static_cast<std::size_t>(s.n)),
        bias(test::random_normal<T>(static_cast<std::size_t>(s.n), 0.5f, generator)),
        residual(test::random_normal<float>(static_cast<std::size_t>(s.m) * s.n, 1.0f, generator)) {
    for (auto& value : scale) value = 0.001f + 0.0001f * test::random_int(0, 9, generator);
    if constexpr (kInt8) {
      for (auto& value : w)
        value = static_cast<std::int8_t>(test::random_int(-127, 127, generator));
    } else {
      w = test::random_normal<T>(w.size(), 0.1f, generator);
    }
  }

  int x_ld() const { return s.k + s.x_pad; }
  int w_ld() const { return s.k + s.w_pad; }
  int y_ld() const { return s.n + s.y_pad; }

  std::vector<double> expected(Kind kind) const {
    switch (kind) {
      case Kind::identity:
        return product(x, w, reference::identity{});
      case Kind::bias:
        return product(x, w, reference::bias<T>{bias.data()});
      case Kind::gelu_erf:
        return product(x, w, reference::bias_gelu_erf<T>{bias.data()});
      case Kind::gelu_tanh:
        return product(x, w, reference::bias_gelu_tanh<T>{bias.data()});
      default: {
        const matrix_view<const float> r{residual.data(), s.m, s.n, s.n};
        return product(x, w, reference::bias_residual<T, float>{bias.data(), r});
      }
    }
  }

  /// sum_k |x| |w|: what the rounding error of the sum is proportional to.
  std::vector<double> magnitude() const {
    std::vector<T> abs_x = x;
    std::vector<Element> abs_w = w;
    for (auto& value : abs_x) value = static_cast<T>(std::abs(static_cast<float>(value)));
    for (auto& value : abs_w) value = static_cast<Element>(std::abs(static_cast<float>(value)));
    return product(abs_x, abs_w, reference::identity{});
  }

  const Shape s;
  std::vector<T> x;
  std::vector<Element> w;
  std::vector<float> scale;
  std::vector<T> bias;
  std::vector<float> residual;
  static constexpr bool kInt8 = std::is_same_v<Element, std::int8_t>;

 private:
  template <class Epilogue>
  std::vector<double> product(const std::vector<T>& a, const std::vector<Element>& b,
                              const Epilogue& epilogue) const {
    std::vector<double> y(static_cast<std::size_t>(s.m) * s.n);
    const matrix_view<const T> a_view{a.data(), s.m, s.k, x_ld()};
    const matrix_view<double> y_view{y.data(), s.m, s.n, s.n};
    if constexpr (kInt8) {
      const int8_weight_view b_view{b.data(), scale.data(), s.n, s.k, w_ld()};
      reference::gemm<double>(a_view, b_view, y_view, epilogue);
    } else {
      const matrix_view<const T> b_view{b.data(), s.n, s.k, w_ld()};
      reference::gemm<double>(a_view, b_view, y_view, epilogue);
    }
    return y;
  }
};

template <class Types>
class GemmTest : public test::GpuTest {
 protected:
  using T = std::tuple_element_t<0, Types>;
  using Element = std::tuple_element_t<1, Types>;
  using Out = std::tuple_element_t<2, Types>;

  void check(const Shape& shape, Kind kind, std::mt19937& generator) {
    SCOPED_TRACE(::testing::Message() << "M " << shape.m << " N " << shape.n << " K " << shape.k
                                      << " pads " << shape.x_pad << " " << shape.w_pad << " "
                                      << shape.y_pad << " epilogue " << static_cast<int>(kind));
    const GemmProblem<T, Element, Out> problem(shape, generator);
    test::DeviceBuffer<T> x(problem.x), bias(problem.bias);
    test::DeviceBuffer<Element> w(problem.w);
    test::DeviceBuffer<float> scale(problem.scale), residual(problem.residual);
    test::DeviceBuffer<Out> y(static_cast<std::size_t>(shape.m) * problem.y_ld());
    const matrix_view<T> x_view{x.data(), shape.m, shape.k, problem.x_ld()};
    const matrix_view<Out> y_view{y.data(), shape.m, shape.n, problem.y_ld()};
    const auto call = [&](const auto& epilogue) {
      if constexpr (GemmProblem<T, Element, Out>::kInt8) {
        return waterweight::w8a16_gemm(
            device, x_view,
            int8_weight_view{w.data(), scale.data(), shape.n, shape.k, problem.w_ld()}, y_view,
            epilogue, waterweight::workspace{}, stream);
      } else {
        return waterweight::w16a16_gemm(device, x_view,
                                        matrix_view<T>{w.data(), shape.n, shape.k, problem.w_ld()},
                                        y_view, epilogue, waterweight::workspace{}, stream);
      }
    };
    const auto run = [&] {
      switch (kind) {
        case Kind::identity:
          return call(waterweight::identity_epilogue{});
        case Kind::bias:
          return call(waterweight::bias_epilogue<T>{bias.data()});
        case Kind::gelu_erf:
          return call(waterweight::bias_gelu_erf_epilogue<T>{bias.data()});
        case Kind::gelu_tanh:
          return call(waterweight::bias_gelu_tanh_epilogue<T>{bias.data()});
        default:
          return call(
              waterweight::bias_residual_epilogue<T, float>{bias.data(), residual.data(), shape.n});
      }
    };
    std::vector<Out> first;
    run_eager_and_captured([&] { y.poison(); }, run,
                           [&](int) {
                             const std::vector<Out> got = y.download();
                             if (first.empty()) {
                               first = got;
                               compare(problem, kind, got);
                             }
                             EXPECT_TRUE(test::same_bits(first, got)) << "differs from run to run";
                           });
  }

  void compare(const GemmProblem<T, Element, Out>& problem, Kind kind,
               const std::vector<Out>& got) {
    const std::vector<double> expected = problem.expected(kind);
    const std::vector<double> magnitude = problem.magnitude();
    const double rounding = std::is_same_v<Out, float>    ? 1e-6
                            : std::is_same_v<Out, __half> ? 0.0006
                                                          : 0.0045;  // over half an ulp of Out
    const Shape& s = problem.s;
    int failures = 0;
    for (int m = 0; m < s.m && failures < 5; ++m) {
      for (int n = 0; n < problem.y_ld(); ++n) {
        const Out& value = got[static_cast<std::size_t>(m) * problem.y_ld() + n];
        if (n >= s.n) {
          EXPECT_TRUE(test::is_poison(value)) << "padding written at " << m << "," << n;
          continue;
        }
        const std::size_t i = static_cast<std::size_t>(m) * s.n + n;
        // GELU's slope is at most 1.13; tanhf and erff are good to a few fp32 ulps.
        const double bound = 1.2 * 4e-7 * (magnitude[i] + std::abs(expected[i]) + 1.0) +
                             rounding * std::abs(expected[i]) + 1e-7;
        const double error = std::abs(static_cast<double>(static_cast<float>(value)) - expected[i]);
        if (!(error <= bound)) {
          ADD_FAILURE() << "y[" << m << "," << n << "] = " << static_cast<float>(value)
                        << ", expected " << expected[i] << " +- " << bound;
          if (++failures == 5) break;
        }
      }
    }
  }
};

using Combinations = ::testing::Types<
    std::tuple<__half, std::int8_t, __half>, std::tuple<__half, std::int8_t, float>,
    std::tuple<__nv_bfloat16, std::int8_t, __nv_bfloat16>,
    std::tuple<__nv_bfloat16, std::int8_t, float>, std::tuple<__half, __half, __half>,
    std::tuple<__nv_bfloat16, __nv_bfloat16, float>>;
TYPED_TEST_SUITE(GemmTest, Combinations);

TYPED_TEST(GemmTest, SmallMOnAlignedRows) {
  std::mt19937 generator(11);
  int i = 0;
  for (int m : {1, 2, 7, 8, 9, 15, 16}) {
    for (int k : {16, 64, 80, 512, 2560}) {
      const int n = test::random_int(1, 90, generator);
      this->check({m, n, k, 16, 16, 3}, static_cast<Kind>(i++ % 5), generator);
    }
  }
}

TYPED_TEST(GemmTest, RandomShapesWithTails) {
  std::mt19937 generator(12);
  for (int i = 0; i < 16; ++i) {
    const Shape shape{test::random_int(1, 300, generator), test::random_int(1, 200, generator),
                      test::random_int(1, 400, generator), test::random_int(0, 9, generator),
                      test::random_int(0, 9, generator),   test::random_int(0, 3, generator)};
    this->check(shape, static_cast<Kind>(i % 5), generator);
  }
}

TYPED_TEST(GemmTest, LargeTilesWithTailsInEveryDimension) {
  std::mt19937 generator(13);
  // Enough 128 x 128 tiles for the large-tile path on up to 144 SMs; K % 16 != 0 but rows aligned.
  this->check({300, 3200, 100, 28, 28, 1}, Kind::bias, generator);
  this->check({257, 3100, 48, 0, 0, 0}, Kind::residual, generator);
}

template <class T>
class GemmInPlaceTest : public GemmTest<std::tuple<T, std::int8_t, float>> {};
using ActivationTypes = ::testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(GemmInPlaceTest, ActivationTypes);

TYPED_TEST(GemmInPlaceTest, ResidualMayBeTheOutput) {
  using T = TypeParam;
  std::mt19937 generator(14);
  for (int m : {3, 40}) {
    const GemmProblem<T, std::int8_t, float> problem({m, 50, 96, 0, 0, 0}, generator);
    test::DeviceBuffer<T> x(problem.x), bias(problem.bias);
    test::DeviceBuffer<std::int8_t> w(problem.w);
    test::DeviceBuffer<float> scale(problem.scale), y(problem.residual);
    ASSERT_CUDA(waterweight::w8a16_gemm(
        this->device, matrix_view<T>{x.data(), m, 96, 96},
        int8_weight_view{w.data(), scale.data(), 50, 96, 96},
        matrix_view<float>{y.data(), m, 50, 50},
        waterweight::bias_residual_epilogue<T, float>{bias.data(), y.data(), 50},
        waterweight::workspace{}, this->stream));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    this->compare(problem, Kind::residual, y.download());
  }
}

/// One aligned token of INT8 weights at the ends of its type's range: the path that rounds the
/// token to fixed point of its largest |x|.
template <class T>
class GemmExtremeTokenTest : public GemmTest<std::tuple<T, std::int8_t, float>> {
 protected:
  static constexpr int kN = 45, kK = 320;

  std::vector<float> run(const GemmProblem<T, std::int8_t, float>& problem) {
    test::DeviceBuffer<T> x(problem.x);
    test::DeviceBuffer<std::int8_t> w(problem.w);
    test::DeviceBuffer<float> scale(problem.scale), y(kN);
    y.poison();
    EXPECT_EQ(cudaSuccess,
              waterweight::w8a16_gemm(this->device, matrix_view<T>{x.data(), 1, kK, kK},
                                      int8_weight_view{w.data(), scale.data(), kN, kK, kK},
                                      matrix_view<float>{y.data(), 1, kN, kN},
                                      waterweight::identity_epilogue{}, waterweight::workspace{},
                                      this->stream));
    EXPECT_EQ(cudaSuccess, cudaStreamSynchronize(this->stream));
    return y.download();
  }

  /// Each activation may move by half a step; fp32 results below 2^-126 may be flushed.
  void compare_to_its_size(const GemmProblem<T, std::int8_t, float>& problem) {
    const std::vector<double> expected = problem.expected(Kind::identity);
    const std::vector<double> magnitude = problem.magnitude();
    const std::vector<float> got = run(problem);
    double largest = 0.0;
    for (T value : problem.x) {
      largest = std::max(largest, std::abs(static_cast<double>(static_cast<float>(value))));
    }
    const double step = std::max(largest / (127.0 * 65536.0), 0x1p-126);
    for (int n = 0; n < kN; ++n) {
      double weights = 0.0;
      for (int k = 0; k < kK; ++k) weights += std::abs(problem.w[n * kK + k]);
      const double bound =
          4.8e-7 * magnitude[n] + 0.5 * step * weights * problem.scale[n] + 0x1p-126;
      EXPECT_NEAR(expected[n], got[n], bound) << "row " << n;
    }
  }
};
TYPED_TEST_SUITE(GemmExtremeTokenTest, ActivationTypes);

TYPED_TEST(GemmExtremeTokenTest, TinyAndHugeTokensKeepTheirRelativeAccuracy) {
  using T = TypeParam;
  std::mt19937 generator(15);
  const bool wide = std::is_same_v<T, __nv_bfloat16>;
  for (float factor : wide ? std::vector<float>{1e34f, 1e-20f, 3e-32f, 1e-32f, 1e-36f, 1e-40f, 0.0f}
                           : std::vector<float>{1e4f, 1e-4f, 1e-7f, 0.0f}) {
    SCOPED_TRACE(::testing::Message() << "factor " << factor);
    GemmProblem<T, std::int8_t, float> problem({1, this->kN, this->kK, 0, 0, 0}, generator);
    for (auto& value : problem.x) value = static_cast<T>(static_cast<float>(value) * factor);
    this->compare_to_its_size(problem);
  }
}

TYPED_TEST(GemmExtremeTokenTest, AnOutlierCostsTheOthersHalfAStepOfItsSize) {
  using T = TypeParam;
  std::mt19937 generator(16);
  for (float outlier : {60000.0f, -300.0f}) {
    SCOPED_TRACE(::testing::Message() << "outlier " << outlier);
    GemmProblem<T, std::int8_t, float> problem({1, this->kN, this->kK, 0, 0, 0}, generator);
    problem.x[77] = static_cast<T>(outlier);
    this->compare_to_its_size(problem);
  }
}

TYPED_TEST(GemmExtremeTokenTest, ANonFiniteValueMakesTheWholeTokenNaN) {
  using T = TypeParam;
  std::mt19937 generator(17);
  for (float value : {INFINITY, -INFINITY, NAN}) {
    GemmProblem<T, std::int8_t, float> problem({1, this->kN, this->kK, 0, 0, 0}, generator);
    problem.x[31] = static_cast<T>(value);
    for (float y : this->run(problem)) EXPECT_TRUE(std::isnan(y)) << value << " gave " << y;
  }
}

TEST(GemmArguments, AreCheckedBeforeAnyLaunch) {
  __half x[64] = {}, y[64] = {};
  std::int8_t w[64] = {};
  float scale[8] = {};
  waterweight::device_info device;
  device.sm_count = 1;
  const matrix_view<__half> good_x{x, 8, 8, 8}, good_y{y, 8, 8, 8};
  const int8_weight_view good_w{w, scale, 8, 8, 8};
  const auto call = [&](matrix_view<__half> xv, int8_weight_view wv, matrix_view<__half> yv,
                        waterweight::workspace ws = {}) {
    return waterweight::w8a16_gemm(device, xv, wv, yv, waterweight::identity_epilogue{}, ws,
                                   nullptr);
  };
  EXPECT_EQ(cudaErrorInvalidValue, call({nullptr, 8, 8, 8}, good_w, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call({x, 0, 8, 8}, good_w, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call({x, 8, 8, 7}, good_w, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call({x, 8, 7, 8}, good_w, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, {w, nullptr, 8, 8, 8}, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, {w, scale, 8, 8, 4}, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, {y, 8, 9, 9}));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, {y, 7, 8, 8}));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, {y, 8, 8, std::int64_t{1} << 31}));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, good_y, {nullptr, 16}));
  device.sm_count = 0;  // query_device was forgotten
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, good_y));
}

}  // namespace
