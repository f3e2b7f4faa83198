// The library's quantizer for rows that come from and go back to host memory.
#pragma once

#include <cstdint>
#include <memory>

namespace pythia {

class CudaQuantizer {
 public:
  /// Throws Error when there is no usable GPU.
  CudaQuantizer();
  ~CudaQuantizer();
  CudaQuantizer(const CudaQuantizer&) = delete;
  CudaQuantizer& operator=(const CudaQuantizer&) = delete;

  /// As reference::quantize_per_channel, bit for bit: w [rows, cols] fp32, q [rows, cols], scale
  /// [rows]; returns the lowest row with a NaN or an infinity, or -1.
  std::int64_t quantize(const float* w, std::int64_t rows, std::int64_t cols, std::int8_t* q,
                        float* scale);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pythia
