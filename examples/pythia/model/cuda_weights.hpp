// A model's weights as they lie in device memory, and how they get there.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>
#include <waterweight/types.hpp>

#include "examples/pythia/io/config.hpp"
#include "examples/pythia/model/cuda_buffer.hpp"
#include "examples/pythia/model/engine.hpp"
#include "examples/pythia/model/weights.hpp"

namespace pythia {

/// y = x W^T + bias with W in 16 bits or in INT8, never both. T: __half or __nv_bfloat16.
template <class T>
struct CudaLinear {
  int n = 0;                         ///< output channels
  int k = 0;                         ///< input features
  T* weight = nullptr;               ///< [n, k], null when quantized
  std::int8_t* quantized = nullptr;  ///< [n, k]
  float* scale = nullptr;            ///< [n]
  T* bias = nullptr;                 ///< [n], null for embed_out

  waterweight::int8_weight_view int8_view() const { return {quantized, scale, n, k, k}; }
  waterweight::matrix_view<const T> view() const { return {weight, n, k, k}; }
};

/// Kept in fp32: they are small, and LayerNorm computes in fp32.
struct CudaLayerNorm {
  float* weight = nullptr;  ///< [hidden]
  float* bias = nullptr;    ///< [hidden]
};

template <class T>
struct CudaLayer {
  CudaLayerNorm attention_norm;
  CudaLayerNorm mlp_norm;
  CudaLinear<T> qkv;  ///< rows laid out [heads, 3, head_dim]
  CudaLinear<T> dense;
  CudaLinear<T> up;
  CudaLinear<T> down;
};

template <class T>
struct CudaWeights {
  T* embedding = nullptr;  ///< [vocab, hidden]
  std::vector<CudaLayer<T>> layers;
  CudaLayerNorm final_norm;
  CudaLinear<T> embed_out;
};

/// Sizes every tensor and registers it with the arena; nothing is allocated yet.
template <class T>
void plan_weights(const Config& config, WeightType type, DeviceArena* arena,
                  CudaWeights<T>* weights);

/// Device memory that load_weights() uses in passing.
std::size_t weight_staging_bytes();

/// Fills the allocated weights: from a checkpoint, quantizing 16- and 32-bit linears on the device
/// where INT8 is wanted, or at random (the values of RandomWeights, made on the device). Throws
/// Error naming the tensor and the row that holds a NaN or an infinity.
template <class T>
void load_weights(const ModelSource& source, const WeightSource& data, const Config& config,
                  MemoryMeter* meter, cudaStream_t stream, CudaWeights<T>* weights);

}  // namespace pythia
