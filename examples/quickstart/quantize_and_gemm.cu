// A linear layer with INT8 weights: quantize once, then multiply with any number of rows.
// readme-begin
#include <waterweight/device_info.cuh>
#include <waterweight/quantize.cuh>
#include <waterweight/w8a16_gemm.cuh>

namespace ww = waterweight;

// y[m, n] = gelu(x[m, k] * w[n, k]^T + bias[n]) from an FP16 w, which is no longer needed
// afterwards.
cudaError_t int8_linear(const ww::device_info& device, ww::matrix_view<const __half> w,
                        ww::mutable_int8_weight_view w_int8, int* bad_rows, const __half* bias,
                        ww::matrix_view<const __half> x, ww::matrix_view<__half> y,
                        ww::workspace scratch, cudaStream_t stream) {
  const cudaError_t status = ww::quantize_per_channel(w, w_int8, bad_rows, stream);
  if (status != cudaSuccess) return status;
  const ww::bias_gelu_erf_epilogue<__half> epilogue{bias};
  return ww::w8a16_gemm(device, x, w_int8, y, epilogue, scratch, stream);
}
// readme-end

#include <cmath>
#include <cstdio>

#include "quickstart.cuh"

using namespace quickstart;

int main() {
  if (!has_gpu()) return skipped;
  const int m = 3, n = 256, k = 512;
  const auto x = random_halves(m * k, 1, 1.0f), w = random_halves(n * k, 2, 0.05f);
  const auto bias = random_halves(n, 3, 0.1f);

  ww::device_info device;
  check(ww::query_device(&device, 0));
  const std::size_t scratch_bytes = ww::w8a16_gemm_workspace_bytes(m, n, k, device);
  device_buffer<__half> x_d(x), w_d(w), bias_d(bias), y_d(m * n);
  device_buffer<std::int8_t> q_d(n * k);
  device_buffer<float> scale_d(n);
  device_buffer<int> bad_rows_d(1);
  device_buffer<std::byte> scratch_d(scratch_bytes);
  check(int8_linear(device, {w_d.get(), n, k, k}, {q_d.get(), scale_d.get(), n, k, k},
                    bad_rows_d.get(), bias_d.get(), {x_d.get(), m, k, k}, {y_d.get(), m, n, n},
                    {scratch_d.get(), scratch_bytes}, nullptr));

  // INT8 rounds every weight by at most half a step, so y stays close to the exact product.
  const auto y = y_d.download();
  double worst = 0.0;
  for (int i = 0; i < m * n; ++i) {
    double sum = __half2float(bias[i % n]);
    for (int j = 0; j < k; ++j) {
      sum += double{__half2float(x[i / n * k + j])} * __half2float(w[i % n * k + j]);
    }
    const double exact = 0.5 * sum * (1.0 + std::erf(sum / std::sqrt(2.0)));
    worst = std::fmax(worst, std::fabs(exact - __half2float(y[i])));
  }
  std::printf("rows with NaN or infinity: %d, largest difference from FP16 weights: %.4f\n",
              bad_rows_d.download()[0], worst);
  return bad_rows_d.download()[0] == 0 && worst < 0.05 ? 0 : 1;
}
