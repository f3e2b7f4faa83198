// Rows up, quantized, and down again.
#include "examples/pythia/model/cuda_quantizer.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <waterweight/quantize.cuh>

#include "examples/pythia/model/cuda_buffer.hpp"
#include "examples/pythia/model/cuda_check.hpp"
#include "examples/pythia/model/cuda_device.hpp"
#include "examples/pythia/model/cuda_graph.hpp"

namespace pythia {

struct CudaQuantizer::Impl {
  CudaStream stream;
  MemoryMeter meter;
  DeviceBytes buffer;
};

CudaQuantizer::CudaQuantizer() {
  require_cuda_device();
  impl_ = std::make_unique<Impl>();
}

CudaQuantizer::~CudaQuantizer() = default;

std::int64_t CudaQuantizer::quantize(const float* w, std::int64_t rows, std::int64_t cols,
                                     std::int8_t* q, float* scale) {
  const auto count = static_cast<std::size_t>(rows * cols);
  const std::size_t scale_offset = count * sizeof(float);
  const std::size_t bad_offset = scale_offset + static_cast<std::size_t>(rows) * sizeof(float);
  const std::size_t q_offset = bad_offset + sizeof(int);
  if (impl_->buffer.size() < q_offset + count) {
    impl_->buffer = DeviceBytes();
    impl_->buffer = DeviceBytes(q_offset + count, &impl_->meter);
  }
  std::byte* base = impl_->buffer.data();
  const cudaStream_t stream = impl_->stream.get();
  auto* device_scale = reinterpret_cast<float*>(base + scale_offset);
  auto* device_q = reinterpret_cast<std::int8_t*>(base + q_offset);
  auto* bad_rows = reinterpret_cast<int*>(base + bad_offset);
  const auto copy = [&](void* target, const void* source, std::size_t bytes) {
    check_cuda(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDefault, stream),
               "cudaMemcpyAsync");
  };
  check_cuda(cudaMemsetAsync(bad_rows, 0, sizeof(int), stream), "cudaMemsetAsync");
  copy(base, w, count * sizeof(float));
  const waterweight::matrix_view<const float> source{reinterpret_cast<const float*>(base), rows,
                                                     cols, cols};
  const waterweight::mutable_int8_weight_view target{device_q, device_scale, rows, cols, cols};
  check_cuda(waterweight::quantize_per_channel(source, target, bad_rows, stream),
             "quantize_per_channel");
  int bad = 0;
  copy(&bad, bad_rows, sizeof(bad));
  copy(q, device_q, count);
  copy(scale, device_scale, static_cast<std::size_t>(rows) * sizeof(float));
  impl_->stream.synchronize();
  if (bad == 0) return -1;
  return std::find_if(scale, scale + rows, [](float s) { return std::isnan(s); }) - scale;
}

}  // namespace pythia
