// What a GEMM does to a finished sum before it is stored: functors `Acc operator()(Acc sum, m, n)`.
#pragma once

#include <cmath>
#include <cstdint>

#include <waterweight/reference/access.hpp>
#include <waterweight/types.hpp>

WATERWEIGHT_NAMESPACE_BEGIN
namespace reference {

/// 0.5 x (1 + erf(x / sqrt(2))), the exact form.
template <class Acc>
inline Acc gelu_erf(Acc x) {
  return Acc(0.5) * x * (Acc(1) + std::erf(x * Acc(0.70710678118654752440)));
}

/// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the tanh form.
template <class Acc>
inline Acc gelu_tanh(Acc x) {
  const Acc inner = Acc(0.79788456080286535588) * (x + Acc(0.044715) * x * x * x);
  return Acc(0.5) * x * (Acc(1) + std::tanh(inner));
}

struct identity {
  template <class Acc>
  Acc operator()(Acc sum, std::int64_t, std::int64_t) const {
    return sum;
  }
};

/// sum + bias[n].
template <class B>
struct bias {
  const B* data = nullptr;  ///< [N]

  template <class Acc>
  Acc operator()(Acc sum, std::int64_t, std::int64_t n) const {
    return sum + widen<Acc>(data[n]);
  }
};

/// gelu_erf(sum + bias[n]).
template <class B>
struct bias_gelu_erf {
  const B* data = nullptr;  ///< [N]

  template <class Acc>
  Acc operator()(Acc sum, std::int64_t, std::int64_t n) const {
    return gelu_erf(sum + widen<Acc>(data[n]));
  }
};

/// gelu_tanh(sum + bias[n]).
template <class B>
struct bias_gelu_tanh {
  const B* data = nullptr;  ///< [N]

  template <class Acc>
  Acc operator()(Acc sum, std::int64_t, std::int64_t n) const {
    return gelu_tanh(sum + widen<Acc>(data[n]));
  }
};

/// sum + bias[n] + residual[m, n]. The residual may alias the output.
template <class B, class R>
struct bias_residual {
  const B* data = nullptr;          ///< [N]
  matrix_view<const R> residual{};  ///< [M, N]

  template <class Acc>
  Acc operator()(Acc sum, std::int64_t m, std::int64_t n) const {
    return sum + widen<Acc>(data[n]) + widen<Acc>(residual.data[m * residual.ld + n]);
  }
};

}  // namespace reference
WATERWEIGHT_NAMESPACE_END
