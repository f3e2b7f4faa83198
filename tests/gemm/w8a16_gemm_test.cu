// w8a16_gemm and w16a16_gemm against the fp64 reference over random shapes, on every path that the
// device in hand takes by itself.
#include <waterweight/w8a16_gemm.cuh>

#include "tests/gemm/gemm_fixture.cuh"

namespace {

using waterweight::int8_weight_view;
using waterweight::matrix_view;

template <class Types>
class GemmTest : public test::GemmFixture<Types> {
 protected:
  using typename test::GemmFixture<Types>::T;
  using typename test::GemmFixture<Types>::Element;
  using typename test::GemmFixture<Types>::Out;

  void check(const test::Shape& shape, test::Kind kind, std::mt19937& generator) {
    const auto gemm = [&](matrix_view<T> x, const Element* w, const float* scale, std::int64_t w_ld,
                          matrix_view<Out> y, const auto& epilogue) {
      const waterweight::workspace ws = this->workspace();
      if constexpr (std::is_same_v<Element, std::int8_t>) {
        return waterweight::w8a16_gemm(this->device, x,
                                       int8_weight_view{w, scale, y.cols, x.cols, w_ld}, y,
                                       epilogue, ws, this->stream);
      } else {
        return waterweight::w16a16_gemm(this->device, x,
                                        matrix_view<const T>{w, y.cols, x.cols, w_ld}, y, epilogue,
                                        ws, this->stream);
      }
    };
    test::GemmFixture<Types>::check(shape, kind, generator, gemm);
  }
};
TYPED_TEST_SUITE(GemmTest, test::GemmCombinations);

TYPED_TEST(GemmTest, SmallMOnAlignedRows) {
  std::mt19937 generator(11);
  int i = 0;
  for (int m : {1, 2, 7, 8, 9, 15, 16}) {
    for (int k : {16, 64, 80, 512, 2560}) {
      const int n = test::random_int(1, 90, generator);
      this->check({m, n, k, 16, 16, 3}, static_cast<test::Kind>(i++ % 5), generator);
    }
  }
}

/// So many that kernels for many tokens take some of them too, where they are there.
TYPED_TEST(GemmTest, FewTokensAndManyWeights) {
  std::mt19937 generator(19);
  int i = 0;
  for (int m : {8, 9, 16, 17, 32}) {
    this->check({m, 1701, 2576, 16, 16, 3}, static_cast<test::Kind>(i++ % 5), generator);
  }
}

/// On half of the device, next to others: products of few weights, of many, and of rows so long
/// that blocks share them.
TYPED_TEST(GemmTest, BesideOthers) {
  std::mt19937 generator(15);
  this->device.sm_count /= 2;
  this->device.beside_others = true;
  int i = 0;
  for (int m : {1, 2, 5, 8, 9, 16}) {
    this->check({m, 200, 512, 16, 16, 3}, static_cast<test::Kind>(i++ % 5), generator);
  }
  for (int m : {7, 13}) {
    this->check({m, 3301, 2560, 16, 16, 3}, static_cast<test::Kind>(i++ % 5), generator);
  }
  this->check({3, 833, 10256, 16, 16, 0}, test::Kind::residual, generator);
}

TYPED_TEST(GemmTest, RandomShapesWithTails) {
  std::mt19937 generator(12);
  for (int i = 0; i < 16; ++i) {
    const test::Shape shape{
        test::random_int(1, 300, generator), test::random_int(1, 200, generator),
        test::random_int(1, 400, generator), test::random_int(0, 9, generator),
        test::random_int(0, 9, generator),   test::random_int(0, 3, generator)};
    this->check(shape, static_cast<test::Kind>(i % 5), generator);
  }
}

TYPED_TEST(GemmTest, LargeTilesWithTailsInEveryDimension) {
  std::mt19937 generator(13);
  // Enough 128 x 128 tiles for the large-tile path on up to 144 SMs; K % 16 != 0 but rows aligned.
  this->check({300, 3200, 100, 28, 28, 1}, test::Kind::bias, generator);
  this->check({257, 3100, 48, 0, 0, 0}, test::Kind::residual, generator);
}

template <class T>
class GemmInPlaceTest : public test::GemmFixture<std::tuple<T, std::int8_t, float>> {};
using ActivationTypes = ::testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(GemmInPlaceTest, ActivationTypes);

TYPED_TEST(GemmInPlaceTest, ResidualMayBeTheOutput) {
  using T = TypeParam;
  std::mt19937 generator(14);
  for (int m : {3, 40}) {
    const test::GemmProblem<T, std::int8_t, float> problem({m, 50, 96, 0, 0, 0}, generator);
    test::DeviceBuffer<T> x(problem.x), bias(problem.bias);
    test::DeviceBuffer<std::int8_t> w(problem.w);
    test::DeviceBuffer<float> scale(problem.scale), y(problem.residual);
    ASSERT_CUDA(waterweight::w8a16_gemm(
        this->device, matrix_view<T>{x.data(), m, 96, 96},
        int8_weight_view{w.data(), scale.data(), 50, 96, 96},
        matrix_view<float>{y.data(), m, 50, 50},
        test::AnyEpilogue<T>{test::Kind::residual, bias.data(), y.data(), 50}, this->workspace(),
        this->stream));
    ASSERT_CUDA(cudaStreamSynchronize(this->stream));
    this->compare(problem, test::Kind::residual, y.download());
  }
}

template <class T>
class GemmBesideOthersTest : public test::GemmFixture<std::tuple<T, std::int8_t, float>> {};
TYPED_TEST_SUITE(GemmBesideOthersTest, ActivationTypes);

/// Two to 16 tokens get the same kernel: another one would add in another order.
TYPED_TEST(GemmBesideOthersTest, ATokenHasTheSameBitsAmongAnyFew) {
  using T = TypeParam;
  std::mt19937 generator(20);
  this->device.sm_count /= 2;
  this->device.beside_others = true;
  for (const test::Shape& shape :
       {test::Shape{16, 200, 512, 0, 0, 0}, test::Shape{16, 3400, 2560, 0, 0, 0}}) {
    const int n = shape.n, k = shape.k;
    const test::GemmProblem<T, std::int8_t, float> problem(shape, generator);
    test::DeviceBuffer<T> x(problem.x);
    test::DeviceBuffer<std::int8_t> w(problem.w);
    test::DeviceBuffer<float> scale(problem.scale);
    const auto multiply = [&](int m) {
      test::DeviceBuffer<float> y(static_cast<std::size_t>(m) * n);
      y.poison();
      EXPECT_CUDA(waterweight::w8a16_gemm(
          this->device, matrix_view<T>{x.data(), m, k, k},
          int8_weight_view{w.data(), scale.data(), n, k, k}, matrix_view<float>{y.data(), m, n, n},
          waterweight::identity_epilogue{}, this->workspace(), this->stream));
      EXPECT_CUDA(cudaStreamSynchronize(this->stream));
      return y.download();
    };
    const std::vector<float> all = multiply(shape.m);
    for (int m : {2, 5, 8, 9}) {
      const std::vector<float> few = multiply(m);
      const std::vector<float> same(all.begin(), all.begin() + m * n);
      EXPECT_TRUE(test::same_bits(same, few)) << m << " tokens, " << n << " x " << k;
    }
  }
}

/// One token in fixed point at the ends of its type's range.
template <class T>
class FixedPointGemvTest : public test::GemmFixture<std::tuple<T, std::int8_t, float>> {
 protected:
  static constexpr int kN = 45, kK = 320;

  std::vector<float> run(const test::GemmProblem<T, std::int8_t, float>& problem) {
    test::DeviceBuffer<T> x(problem.x);
    test::DeviceBuffer<std::int8_t> w(problem.w);
    test::DeviceBuffer<float> scale(problem.scale), y(kN);
    y.poison();
    EXPECT_EQ(cudaSuccess,
              waterweight::w8a16_fixed_point_gemv(
                  this->device, matrix_view<T>{x.data(), 1, kK, kK},
                  int8_weight_view{w.data(), scale.data(), kN, kK, kK},
                  matrix_view<float>{y.data(), 1, kN, kN}, test::AnyEpilogue<T>{}, this->stream));
    EXPECT_EQ(cudaSuccess, cudaStreamSynchronize(this->stream));
    return y.download();
  }

  /// Each activation may move by half a step; fp32 results below 2^-126 may be flushed.
  void compare_to_its_size(const test::GemmProblem<T, std::int8_t, float>& problem) {
    const std::vector<double> expected = problem.expected(test::Kind::identity);
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
TYPED_TEST_SUITE(FixedPointGemvTest, ActivationTypes);

TYPED_TEST(FixedPointGemvTest, TinyAndHugeTokensKeepTheirRelativeAccuracy) {
  using T = TypeParam;
  std::mt19937 generator(15);
  const bool wide = std::is_same_v<T, __nv_bfloat16>;
  for (float factor : wide ? std::vector<float>{1e34f, 1e-20f, 3e-32f, 1e-32f, 1e-36f, 1e-40f, 0.0f}
                           : std::vector<float>{1e4f, 1e-4f, 1e-7f, 0.0f}) {
    SCOPED_TRACE(::testing::Message() << "factor " << factor);
    test::GemmProblem<T, std::int8_t, float> problem({1, this->kN, this->kK, 0, 0, 0}, generator);
    for (auto& value : problem.x) value = static_cast<T>(static_cast<float>(value) * factor);
    this->compare_to_its_size(problem);
  }
}

TYPED_TEST(FixedPointGemvTest, AnOutlierCostsTheOthersHalfAStepOfItsSize) {
  using T = TypeParam;
  std::mt19937 generator(16);
  for (float outlier : {60000.0f, -300.0f}) {
    SCOPED_TRACE(::testing::Message() << "outlier " << outlier);
    test::GemmProblem<T, std::int8_t, float> problem({1, this->kN, this->kK, 0, 0, 0}, generator);
    problem.x[77] = static_cast<T>(outlier);
    this->compare_to_its_size(problem);
  }
}

TYPED_TEST(FixedPointGemvTest, ANonFiniteValueMakesTheWholeTokenNaN) {
  using T = TypeParam;
  std::mt19937 generator(17);
  for (float value : {INFINITY, -INFINITY, NAN}) {
    test::GemmProblem<T, std::int8_t, float> problem({1, this->kN, this->kK, 0, 0, 0}, generator);
    problem.x[31] = static_cast<T>(value);
    for (float y : this->run(problem)) EXPECT_TRUE(std::isnan(y)) << value << " gave " << y;
  }
}

TYPED_TEST(FixedPointGemvTest, ShapesWithTails) {
  using T = TypeParam;
  std::mt19937 generator(18);
  for (const test::Shape& shape :
       {test::Shape{1, 1, 16, 0, 0, 0}, test::Shape{1, 333, 80, 0, 16, 0},
        test::Shape{1, 90, 2576, 0, 0, 0}, test::Shape{1, 5, 10240, 0, 32, 0}}) {
    const auto gemv = [&](matrix_view<T> x, const std::int8_t* w, const float* scale,
                          std::int64_t w_ld, matrix_view<float> y, const auto& epilogue) {
      return waterweight::w8a16_fixed_point_gemv(this->device, x,
                                                 int8_weight_view{w, scale, y.cols, x.cols, w_ld},
                                                 y, epilogue, this->stream);
    };
    this->check(shape, test::Kind::residual, generator, gemv);
  }
}

TEST(FixedPointGemvArguments, AreCheckedBeforeAnyLaunch) {
  alignas(16) __half x[64] = {};
  __half y[8] = {};
  alignas(16) std::int8_t w[320] = {};
  float scale[8] = {};
  waterweight::device_info device;
  device.sm_count = 1;
  const auto call = [&](matrix_view<__half> xv, int8_weight_view wv, matrix_view<__half> yv) {
    return waterweight::w8a16_fixed_point_gemv(device, xv, wv, yv, waterweight::identity_epilogue{},
                                               nullptr);
  };
  const matrix_view<__half> good_x{x, 1, 32, 32}, good_y{y, 1, 8, 8};
  const int8_weight_view good_w{w, scale, 8, 32, 32};
  EXPECT_EQ(cudaErrorInvalidValue, call({x, 2, 32, 32}, good_w, {y, 2, 4, 4}));
  EXPECT_EQ(cudaErrorInvalidValue, call({x + 1, 1, 32, 32}, good_w, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call({x, 1, 24, 24}, {w, scale, 8, 24, 32}, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, {w + 8, scale, 8, 32, 32}, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, {w, scale, 8, 32, 40}, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, {w, nullptr, 8, 32, 32}, good_y));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, {y, 1, 7, 7}));
  const std::int64_t too_long = waterweight::kFixedPointGemvMaxK + 16;
  EXPECT_EQ(cudaErrorInvalidValue,
            call({x, 1, too_long, too_long}, {w, scale, 8, too_long, too_long}, good_y));
  device.sm_count = 0;  // query_device was forgotten
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, good_y));
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
  // Where the workspace is needed it must be whole, and aligned.
  device.compute_capability = 90;
  __half long_x[17 * 8] = {}, long_y[17 * 8] = {};
  const std::size_t needed = waterweight::w8a16_gemm_workspace_bytes(17, 8, 8, device);
  if (needed > 0) {
    alignas(16) unsigned char scratch[32];
    EXPECT_EQ(cudaErrorInvalidValue, call({long_x, 17, 8, 8}, good_w, {long_y, 17, 8, 8}));
    EXPECT_EQ(cudaErrorInvalidValue,
              call({long_x, 17, 8, 8}, good_w, {long_y, 17, 8, 8}, {scratch, needed - 1}));
    EXPECT_EQ(cudaErrorInvalidValue,
              call({long_x, 17, 8, 8}, good_w, {long_y, 17, 8, 8}, {scratch + 1, needed}));
  }
  device.sm_count = 0;  // query_device was forgotten
  EXPECT_EQ(cudaErrorInvalidValue, call(good_x, good_w, good_y));
}

}  // namespace
