// quantize_per_channel and dequantize against the host reference, bit for bit.
#include <cmath>
#include <limits>

#include <waterweight/quantize.cuh>
#include <waterweight/reference/quantize.hpp>

#include "tests/support/device.cuh"

namespace {

using waterweight::int8_weight_view;
using waterweight::matrix_view;
using waterweight::mutable_int8_weight_view;

template <class T>
class QuantizeTest : public test::GpuTest {
 protected:
  struct Case {
    std::int64_t rows, cols, w_ld, q_ld;
    std::vector<T> weights;
  };

  Case random_case(std::mt19937& generator) {
    Case c;
    c.rows = test::random_int(1, 40, generator);
    c.cols = test::random_int(1, 700, generator);
    // Half of the cases take the 16-byte path, half do not.
    const bool aligned = test::random_int(0, 1, generator) == 1;
    c.w_ld = aligned ? (c.cols + 23) / 16 * 16 : c.cols + test::random_int(0, 5, generator);
    c.q_ld = aligned ? (c.cols + 23) / 16 * 16 : c.cols + test::random_int(0, 5, generator);
    c.weights = test::random_normal<T>(static_cast<std::size_t>(c.rows * c.w_ld), 0.05f, generator);
    return c;
  }

  /// Quantizes on both sides and compares everything, padding included.
  void check(const Case& c, int expected_bad_rows) {
    std::vector<std::int8_t> q(static_cast<std::size_t>(c.rows * c.q_ld), -1);
    std::vector<float> scale(static_cast<std::size_t>(c.rows));
    const mutable_int8_weight_view host{q.data(), scale.data(), c.rows, c.cols, c.q_ld};
    waterweight::reference::quantize_per_channel(
        matrix_view<const T>{c.weights.data(), c.rows, c.cols, c.w_ld}, host);

    test::DeviceBuffer<T> d_w(c.weights);
    test::DeviceBuffer<std::int8_t> d_q(q.size());
    test::DeviceBuffer<float> d_scale(scale.size());
    test::DeviceBuffer<int> d_bad(1);
    const mutable_int8_weight_view view{d_q.data(), d_scale.data(), c.rows, c.cols, c.q_ld};
    run_eager_and_captured(
        [&] {
          d_q.poison();
          d_scale.poison();
          d_bad.upload({0});
        },
        [&] {
          return waterweight::quantize_per_channel(
              matrix_view<T>{d_w.data(), c.rows, c.cols, c.w_ld}, view, d_bad.data(), stream);
        },
        [&](int) {
          EXPECT_EQ(expected_bad_rows, d_bad.download()[0]);
          EXPECT_TRUE(test::same_bits(q, d_q.download()));
          const std::vector<float> got = d_scale.download();
          for (std::size_t n = 0; n < got.size(); ++n) {
            if (std::isnan(scale[n])) {
              EXPECT_TRUE(std::isnan(got[n])) << "row " << n;
            } else {
              EXPECT_EQ(scale[n], got[n]) << "row " << n;
            }
          }
        });
  }
};

using ElementTypes = ::testing::Types<float, __half, __nv_bfloat16>;
TYPED_TEST_SUITE(QuantizeTest, ElementTypes);

TYPED_TEST(QuantizeTest, MatchesTheReferenceBitForBit) {
  std::mt19937 generator(1);
  for (int i = 0; i < 24; ++i) this->check(this->random_case(generator), 0);
}

TYPED_TEST(QuantizeTest, ZeroRowsGetScaleZero) {
  std::mt19937 generator(2);
  auto c = this->random_case(generator);
  for (std::int64_t k = 0; k < c.cols; ++k) c.weights[k] = TypeParam(0.0f);
  this->check(c, 0);
}

TYPED_TEST(QuantizeTest, NonFiniteRowsAreCountedAndPoisoned) {
  std::mt19937 generator(3);
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY}) {
    auto c = this->random_case(generator);
    c.weights[static_cast<std::size_t>((c.rows - 1) * c.w_ld + c.cols - 1)] = TypeParam(bad);
    this->check(c, 1);
  }
}

TYPED_TEST(QuantizeTest, MagnitudesAroundTheLeastScale) {
  std::mt19937 generator(4);
  // absmax / 127 is subnormal, then just normal.
  for (float magnitude : {1e-43f, 1e-37f, 1.4e-36f, 1.6e-36f, 1e-30f}) {
    auto c = this->random_case(generator);
    std::uniform_real_distribution<float> uniform(-magnitude, magnitude);
    for (auto& w : c.weights) w = TypeParam(uniform(generator));
    this->check(c, 0);
  }
}

TYPED_TEST(QuantizeTest, DequantizeRoundsTheProduct) {
  std::mt19937 generator(5);
  const std::int64_t rows = 7, cols = 33, ld = 40;
  std::vector<std::int8_t> q(rows * ld);
  for (auto& value : q) value = static_cast<std::int8_t>(test::random_int(-127, 127, generator));
  const std::vector<float> scale = test::random_normal<float>(rows, 0.01f, generator);
  std::vector<TypeParam> expected(rows * cols);
  waterweight::reference::dequantize(int8_weight_view{q.data(), scale.data(), rows, cols, ld},
                                     matrix_view<TypeParam>{expected.data(), rows, cols, cols});
  test::DeviceBuffer<std::int8_t> d_q(q);
  test::DeviceBuffer<float> d_scale(scale);
  test::DeviceBuffer<TypeParam> d_w(expected.size());
  ASSERT_CUDA(waterweight::dequantize(int8_weight_view{d_q.data(), d_scale.data(), rows, cols, ld},
                                      matrix_view<TypeParam>{d_w.data(), rows, cols, cols},
                                      this->stream));
  ASSERT_CUDA(cudaStreamSynchronize(this->stream));
  EXPECT_TRUE(test::same_bits(expected, d_w.download()));
}

// The checks run on the host alone, so this one needs no GPU.
TEST(QuantizeArguments, AreCheckedBeforeAnyLaunch) {
  float w[16];
  std::int8_t q[16];
  float scale[4];
  int bad = 0;
  const matrix_view<float> good_w{w, 4, 4, 4};
  const mutable_int8_weight_view good_q{q, scale, 4, 4, 4};
  const auto call = [&](matrix_view<float> w_view, mutable_int8_weight_view q_view, int* flag) {
    return waterweight::quantize_per_channel(w_view, q_view, flag, nullptr);
  };
  EXPECT_EQ(cudaErrorInvalidValue, call({nullptr, 4, 4, 4}, good_q, &bad));
  EXPECT_EQ(cudaErrorInvalidValue, call({w, 0, 4, 4}, good_q, &bad));
  EXPECT_EQ(cudaErrorInvalidValue, call({w, 4, -1, 4}, good_q, &bad));
  EXPECT_EQ(cudaErrorInvalidValue, call({w, 4, 4, 3}, good_q, &bad));
  EXPECT_EQ(cudaErrorInvalidValue, call({w, std::int64_t{1} << 31, 4, 4}, good_q, &bad));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_w, {q, nullptr, 4, 4, 4}, &bad));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_w, {q, scale, 3, 4, 4}, &bad));
  EXPECT_EQ(cudaErrorInvalidValue, call(good_w, good_q, nullptr));
  EXPECT_EQ(cudaErrorInvalidValue,
            waterweight::dequantize(int8_weight_view{q, scale, 4, 4, 4},
                                    matrix_view<float>{w, 4, 5, 5}, nullptr));
}

}  // namespace
