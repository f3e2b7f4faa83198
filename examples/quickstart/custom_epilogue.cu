// An epilogue of one's own: the gate of a SwiGLU layer, applied while the sum is still in fp32.
#include <waterweight/device_info.cuh>
#include <waterweight/w8a16_gemm.cuh>

#include <cmath>
#include <cstdio>

#include "quickstart.cuh"

namespace ww = waterweight;
using namespace quickstart;

// Any type that can be called like this with an fp32 sum and its place in Y[M, N] will do.
struct silu_gate {
  const __half* up;  // [M, N]
  int ld;
  __device__ float operator()(float acc, int m, int n) const {
    return acc / (1.0f + __expf(-acc)) * __half2float(up[m * ld + n]);
  }
};

int main() {
  if (!has_gpu()) return skipped;
  const int m = 5, n = 192, k = 256;
  const auto x = random_halves(m * k, 1, 1.0f), up = random_halves(m * n, 2, 1.0f);
  std::vector<std::int8_t> w(n * k);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<std::int8_t>(i * 37 % 255 - 127);
  const std::vector<float> scale(n, 0.001f);

  ww::device_info device;
  check(ww::query_device(&device, 0));
  const std::size_t scratch_bytes = ww::w8a16_gemm_workspace_bytes(m, n, k, device);
  device_buffer<__half> x_d(x), up_d(up);
  device_buffer<std::int8_t> w_d(w);
  device_buffer<float> scale_d(scale), y_d(m * n);
  device_buffer<std::byte> scratch_d(scratch_bytes);
  check(ww::w8a16_gemm(device, ww::matrix_view<const __half>{x_d.get(), m, k, k},
                       {w_d.get(), scale_d.get(), n, k, k},
                       ww::matrix_view<float>{y_d.get(), m, n, n}, silu_gate{up_d.get(), n},
                       {scratch_d.get(), scratch_bytes}, nullptr));

  const auto y = y_d.download();
  double worst = 0.0;
  for (int i = 0; i < m * n; ++i) {
    double sum = 0.0;
    for (int j = 0; j < k; ++j) {
      sum += double{__half2float(x[i / n * k + j])} * w[i % n * k + j] * scale[i % n];
    }
    const double expected = sum / (1.0 + std::exp(-sum)) * __half2float(up[i]);
    worst = std::fmax(worst, std::fabs(expected - y[i]) / (1.0 + std::fabs(expected)));
  }
  std::printf("largest relative difference from the host: %.1e\n", worst);
  return worst < 1e-3 ? 0 : 1;
}
