// Y = epilogue(X W^T) on the host, with 16/32/64-bit or INT8 weights. Plain loops: the oracle of
// the device kernels.
#pragma once

#include <cstdint>
#include <type_traits>

#include <waterweight/reference/access.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// y[m, n] = epilogue(sum over k of x[m, k] * w[n, k], m, n); products and sum in Acc, in ascending
/// k, rounded once when stored. x [M, K], w [N, K], y [M, N]; X and W may be const. y must not
/// overlap x or w. Cost M N K multiply-adds.
template <class Acc, class X, class W, class Out, class Epilogue>
void gemm(matrix_view<X> x, matrix_view<W> w, matrix_view<Out> y, Epilogue epilogue) {
  for (std::int64_t m = 0; m < y.rows; ++m) {
    for (std::int64_t n = 0; n < y.cols; ++n) {
      Acc sum = 0;
      for (std::int64_t k = 0; k < x.cols; ++k) {
        sum += widen<Acc>(x.data[m * x.ld + k]) * widen<Acc>(w.data[n * w.ld + k]);
      }
      y.data[m * y.ld + n] = static_cast<Out>(epilogue(sum, m, n));
    }
  }
}

/// The same with INT8 weights: scale[n] multiplies the finished sum once, before the epilogue.
template <class Acc, class X, class Out, class Epilogue>
void gemm(matrix_view<X> x, int8_weight_view w, matrix_view<Out> y, Epilogue epilogue) {
  const auto scaled = [&](Acc sum, std::int64_t m, std::int64_t n) {
    return epilogue(sum * static_cast<Acc>(w.scale[n]), m, n);
  };
  gemm<Acc>(x, matrix_view<const std::int8_t>{w.data, w.rows, w.cols, w.ld}, y, scaled);
}

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
