// Random GEMM problems with their fp64 answers, and the fixture that runs a GEMM on them.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include <waterweight/device/epilogue.cuh>
#include <waterweight/reference/epilogue.hpp>
#include <waterweight/reference/gemm.hpp>
#include <waterweight/w8a16_gemm.cuh>

#include "tests/support/device.cuh"

namespace test {

using waterweight::int8_weight_view;
using waterweight::matrix_view;
namespace reference = waterweight::reference;

enum class Kind { identity, bias, gelu_erf, gelu_tanh, residual };

/// One of the library's epilogues, chosen at run time: the kernels are compiled once for all five.
template <class T>
struct AnyEpilogue {
  Kind kind;
  const T* bias;
  const float* residual;
  std::int64_t residual_ld;

  __device__ float operator()(float acc, int m, int n) const {
    switch (kind) {
      case Kind::identity:
        return waterweight::identity_epilogue{}(acc, m, n);
      case Kind::bias:
        return waterweight::bias_epilogue<T>{bias}(acc, m, n);
      case Kind::gelu_erf:
        return waterweight::bias_gelu_erf_epilogue<T>{bias}(acc, m, n);
      case Kind::gelu_tanh:
        return waterweight::bias_gelu_tanh_epilogue<T>{bias}(acc, m, n);
      default:
        return waterweight::bias_residual_epilogue<T, float>{bias, residual, residual_ld}(acc, m,
                                                                                          n);
    }
  }
};

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
        x(random_normal<T>(static_cast<std::size_t>(s.m) * x_ld(), 1.0f, generator)),
        w(static_cast<std::size_t>(s.n) * w_ld()),
        scale(static_cast<std::size_t>(s.n)),
        bias(random_normal<T>(static_cast<std::size_t>(s.n), 0.5f, generator)),
        residual(random_normal<float>(static_cast<std::size_t>(s.m) * s.n, 1.0f, generator)) {
    for (auto& value : scale) value = 0.001f + 0.0001f * random_int(0, 9, generator);
    if constexpr (kInt8) {
      for (auto& value : w) value = static_cast<std::int8_t>(random_int(-127, 127, generator));
    } else {
      w = random_normal<T>(w.size(), 0.1f, generator);
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
class GemmFixture : public GpuTest {
 protected:
  using T = std::tuple_element_t<0, Types>;
  using Element = std::tuple_element_t<1, Types>;
  using Out = std::tuple_element_t<2, Types>;
  /// One combination of types sees the kernels with each epilogue as a user compiles them.
  static constexpr bool kEveryEpilogueAlone =
      std::is_same_v<Types, std::tuple<__half, std::int8_t, __half>>;

  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    const std::size_t bytes = waterweight::w8a16_gemm_workspace_bytes(1 << 20, 1, 1, device);
    scratch = std::make_unique<DeviceBuffer<unsigned char>>(bytes);
    ASSERT_CUDA(cudaMemset(scratch->data(), 0, bytes));
    ASSERT_CUDA(cudaDeviceSynchronize());
  }
  void TearDown() override {
    GpuTest::TearDown();
    if (scratch == nullptr) return;
    const std::vector<unsigned char> left = scratch->download();
    EXPECT_TRUE(std::all_of(left.begin(), left.end(), [](unsigned char byte) { return byte == 0; }))
        << "the workspace was not left zero";
  }

  waterweight::workspace workspace() { return {scratch->data(), scratch->size()}; }

  /// Runs the function under test, gemm(x, w, scale, w_ld, y, epilogue), and compares.
  template <class Gemm>
  void check(const Shape& shape, Kind kind, std::mt19937& generator, const Gemm& gemm) {
    SCOPED_TRACE(::testing::Message() << "M " << shape.m << " N " << shape.n << " K " << shape.k
                                      << " pads " << shape.x_pad << " " << shape.w_pad << " "
                                      << shape.y_pad << " epilogue " << static_cast<int>(kind));
    const GemmProblem<T, Element, Out> problem(shape, generator);
    DeviceBuffer<T> x(problem.x), bias(problem.bias);
    DeviceBuffer<Element> w(problem.w);
    DeviceBuffer<float> scale(problem.scale), residual(problem.residual);
    DeviceBuffer<Out> y(static_cast<std::size_t>(shape.m) * problem.y_ld());
    const matrix_view<T> x_view{x.data(), shape.m, shape.k, problem.x_ld()};
    const matrix_view<Out> y_view{y.data(), shape.m, shape.n, problem.y_ld()};
    const auto run = [&] {
      const auto call = [&](const auto& epilogue) {
        return gemm(x_view, w.data(), scale.data(), problem.w_ld(), y_view, epilogue);
      };
      if constexpr (!kEveryEpilogueAlone) {
        return call(AnyEpilogue<T>{kind, bias.data(), residual.data(), shape.n});
      } else {
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
            return call(waterweight::bias_residual_epilogue<T, float>{bias.data(), residual.data(),
                                                                      shape.n});
        }
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
                             EXPECT_TRUE(same_bits(first, got)) << "differs from run to run";
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
          EXPECT_TRUE(is_poison(value)) << "padding written at " << m << "," << n;
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

 private:
  std::unique_ptr<DeviceBuffer<unsigned char>> scratch;
};

using GemmCombinations = ::testing::Types<
    std::tuple<__half, std::int8_t, __half>, std::tuple<__half, std::int8_t, float>,
    std::tuple<__nv_bfloat16, std::int8_t, __nv_bfloat16>,
    std::tuple<__nv_bfloat16, std::int8_t, float>, std::tuple<__half, __half, __half>,
    std::tuple<__nv_bfloat16, __nv_bfloat16, float>>;

}  // namespace test
