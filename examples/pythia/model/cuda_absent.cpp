// What a build without CUDA answers in place of the .cu files.
#ifndef PYTHIA_HAS_CUDA

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_device.hpp"
#include "examples/pythia/model/cuda_engine.hpp"
#include "examples/pythia/model/cuda_quantizer.hpp"

namespace pythia {

CudaStatus query_cuda() {
  CudaStatus status;
  status.reason = "no CUDA device: this build has no CUDA";
  return status;
}

void require_cuda_device() { throw Error("--device cuda: " + query_cuda().reason); }

std::unique_ptr<Engine> make_cuda_engine(const ModelSource&, const EngineOptions&) {
  require_cuda_device();
  return nullptr;
}

struct CudaQuantizer::Impl {};

CudaQuantizer::CudaQuantizer() { require_cuda_device(); }
CudaQuantizer::~CudaQuantizer() = default;

std::int64_t CudaQuantizer::quantize(const float*, std::int64_t, std::int64_t, std::int8_t*,
                                     float*) {
  return -1;
}

}  // namespace pythia

#endif
