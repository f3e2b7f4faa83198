// Sizes the weights in device memory and fills them, a few megabytes at a time.
#include "examples/pythia/model/cuda_weights.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <waterweight/detail/arch/convert.cuh>
#include <waterweight/quantize.cuh>

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_check.hpp"
#include "examples/pythia/model/cuda_random_weights.cuh"

namespace pythia {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{64} << 20;
constexpr int kThreads = 256;
constexpr int kBlocks = 1024;

template <class Source, class Target>
__global__ void convert_kernel(const Source* in, std::int64_t count, Target* out) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    out[i] = waterweight::detail::from_float<Target>(waterweight::detail::to_float(in[i]));
  }
}

/// Calls function(pointer) with `data` as the element type that `dtype` says.
template <class Function>
void with_elements(DType dtype, const std::byte* data, const Function& function) {
  switch (dtype) {
    case DType::f16:
      return function(reinterpret_cast<const __half*>(data));
    case DType::bf16:
      return function(reinterpret_cast<const __nv_bfloat16*>(data));
    default:
      return function(reinterpret_cast<const float*>(data));
  }
}

/// Brings pieces of tensors to the device, in the type they are stored in.
class Uploader {
 public:
  Uploader(const ModelSource& source, const WeightSource& data, MemoryMeter* meter,
           cudaStream_t stream)
      : source_(source), data_(data), stream_(stream), staging_(kStagingBytes, meter) {
    bad_rows_ = DeviceBytes(sizeof(int), meter);
    if (random()) {
      const auto values = random_weight_values();
      random_values_ = DeviceBytes(sizeof(values), meter);
      copy(random_values_.data(), values.data(), sizeof(values));
    }
  }

  /// out[i] = the tensor's elements, converted.
  template <class Target>
  void convert(const WeightSpec& spec, Target* out) {
    for_each_piece(spec, [&](std::int64_t first, std::int64_t rows) {
      const std::int64_t count = rows * spec.cols();
      with_elements(data_.dtype(spec), staging_.data(), [&](auto* elements) {
        convert_kernel<<<kBlocks, kThreads, 0, stream_>>>(elements, count,
                                                          out + first * spec.cols());
      });
      check_cuda(cudaGetLastError(), "convert_kernel");
    });
  }

  /// INT8 weights and scales, from INT8 or by quantizing.
  void quantized(const WeightSpec& spec, std::int8_t* out, float* scale) {
    if (data_.dtype(spec) == DType::i8) return stored_int8(spec, out, scale);
    check_cuda(cudaMemsetAsync(bad_rows_.data(), 0, sizeof(int), stream_), "cudaMemsetAsync");
    auto* bad_rows = reinterpret_cast<int*>(bad_rows_.data());
    const std::int64_t cols = spec.cols();
    for_each_piece(spec, [&](std::int64_t first, std::int64_t rows) {
      const waterweight::mutable_int8_weight_view target{out + first * cols, scale + first, rows,
                                                         cols, cols};
      with_elements(data_.dtype(spec), staging_.data(), [&](auto* elements) {
        using Element = std::remove_pointer_t<decltype(elements)>;
        const waterweight::matrix_view<Element> piece{elements, rows, cols, cols};
        check_cuda(waterweight::quantize_per_channel(piece, target, bad_rows, stream_),
                   "quantize_per_channel");
      });
    });
    int count = 0;
    check_cuda(cudaMemcpyAsync(&count, bad_rows, sizeof(count), cudaMemcpyDeviceToHost, stream_),
               "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    if (count > 0) report_bad_row(spec, scale);
  }

 private:
  bool random() const { return !source_.random_name.empty(); }

  void copy(void* target, const void* from, std::size_t bytes) {
    check_cuda(cudaMemcpyAsync(target, from, bytes, cudaMemcpyHostToDevice, stream_),
               "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  /// Puts as many rows as fit into the staging buffer, calls function(first row, rows), and so on.
  template <class Function>
  void for_each_piece(const WeightSpec& spec, const Function& function) {
    const std::size_t row_bytes =
        static_cast<std::size_t>(spec.cols()) * dtype_bytes(data_.dtype(spec));
    const auto most =
        std::max<std::int64_t>(1, static_cast<std::int64_t>(kStagingBytes / row_bytes));
    for (std::int64_t first = 0; first < spec.rows(); first += most) {
      const std::int64_t rows = std::min(most, spec.rows() - first);
      stage(spec, first * spec.cols(), rows * spec.cols());
      function(first, rows);
    }
  }

  void stage(const WeightSpec& spec, std::int64_t first, std::int64_t count) {
    if (random() && spec.role != WeightRole::norm) {
      random_weights_kernel<kThreads><<<kBlocks, kThreads, 0, stream_>>>(
          random_weight_stream(spec), first, count,
          reinterpret_cast<const __half*>(random_values_.data()),
          reinterpret_cast<__half*>(staging_.data()));
      check_cuda(cudaGetLastError(), "random_weights_kernel");
      return;
    }
    host_.resize(static_cast<std::size_t>(count) * dtype_bytes(data_.dtype(spec)));
    data_.read(spec, first, count, host_.data());
    copy(staging_.data(), host_.data(), host_.size());
  }

  void stored_int8(const WeightSpec& spec, std::int8_t* out, float* scale) {
    for_each_piece(spec, [&](std::int64_t first, std::int64_t rows) {
      check_cuda(cudaMemcpyAsync(out + first * spec.cols(), staging_.data(),
                                 static_cast<std::size_t>(rows * spec.cols()),
                                 cudaMemcpyDeviceToDevice, stream_),
                 "cudaMemcpyAsync");
    });
    std::vector<float> scales(static_cast<std::size_t>(spec.rows()));
    data_.read_scales(spec, scales.data());
    copy(scale, scales.data(), scales.size() * sizeof(float));
  }

  [[noreturn]] void report_bad_row(const WeightSpec& spec, const float* scale) {
    std::vector<float> scales(static_cast<std::size_t>(spec.rows()));
    check_cuda(
        cudaMemcpy(scales.data(), scale, scales.size() * sizeof(float), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
    const auto bad =
        std::find_if(scales.begin(), scales.end(), [](float s) { return std::isnan(s); });
    throw Error(source_.dir.string() + ": tensor " + spec.name +
                ": expected finite weights, found a NaN or an infinity in row " +
                std::to_string(bad - scales.begin()));
  }

  const ModelSource& source_;
  const WeightSource& data_;
  cudaStream_t stream_;
  DeviceBytes staging_;
  DeviceBytes bad_rows_;
  DeviceBytes random_values_;
  std::vector<std::byte> host_;
};

template <class T>
void plan_linear(int n, int k, WeightType type, bool bias, DeviceArena* arena,
                 CudaLinear<T>* linear) {
  linear->n = n;
  linear->k = k;
  const std::size_t elements = static_cast<std::size_t>(n) * static_cast<std::size_t>(k);
  if (type == WeightType::int8) {
    arena->add(&linear->quantized, elements);
    arena->add(&linear->scale, static_cast<std::size_t>(n));
  } else {
    arena->add(&linear->weight, elements);
  }
  if (bias) arena->add(&linear->bias, static_cast<std::size_t>(n));
}

void plan_norm(int hidden, DeviceArena* arena, CudaLayerNorm* norm) {
  arena->add(&norm->weight, static_cast<std::size_t>(hidden));
  arena->add(&norm->bias, static_cast<std::size_t>(hidden));
}

/// Loads one tensor to its place.
template <class T>
void load_tensor(const WeightSpec& spec, Uploader* upload, CudaWeights<T>* weights) {
  const auto linear = [&](const CudaLinear<T>& target) {
    if (target.quantized != nullptr) {
      upload->quantized(spec, target.quantized, target.scale);
    } else {
      upload->convert(spec, target.weight);
    }
  };
  CudaLayer<T>* layer =
      spec.layer < 0 ? nullptr : &weights->layers[static_cast<std::size_t>(spec.layer)];
  switch (spec.id) {
    case WeightId::embed_in:
      return upload->convert(spec, weights->embedding);
    case WeightId::input_norm_weight:
      return upload->convert(spec, layer->attention_norm.weight);
    case WeightId::input_norm_bias:
      return upload->convert(spec, layer->attention_norm.bias);
    case WeightId::post_attention_norm_weight:
      return upload->convert(spec, layer->mlp_norm.weight);
    case WeightId::post_attention_norm_bias:
      return upload->convert(spec, layer->mlp_norm.bias);
    case WeightId::qkv_weight:
      return linear(layer->qkv);
    case WeightId::qkv_bias:
      return upload->convert(spec, layer->qkv.bias);
    case WeightId::dense_weight:
      return linear(layer->dense);
    case WeightId::dense_bias:
      return upload->convert(spec, layer->dense.bias);
    case WeightId::up_weight:
      return linear(layer->up);
    case WeightId::up_bias:
      return upload->convert(spec, layer->up.bias);
    case WeightId::down_weight:
      return linear(layer->down);
    case WeightId::down_bias:
      return upload->convert(spec, layer->down.bias);
    case WeightId::final_norm_weight:
      return upload->convert(spec, weights->final_norm.weight);
    case WeightId::final_norm_bias:
      return upload->convert(spec, weights->final_norm.bias);
    case WeightId::embed_out:
      return linear(weights->embed_out);
  }
}

}  // namespace

std::size_t weight_staging_bytes() { return kStagingBytes + (1 << 16); }

template <class T>
void plan_weights(const Config& config, WeightType type, DeviceArena* arena,
                  CudaWeights<T>* weights) {
  const int hidden = config.hidden_size;
  const int inner = config.intermediate_size;
  const auto table = static_cast<std::size_t>(config.vocab_size) * static_cast<std::size_t>(hidden);
  arena->add(&weights->embedding, table);
  weights->layers.resize(static_cast<std::size_t>(config.num_layers));
  for (CudaLayer<T>& layer : weights->layers) {
    plan_norm(hidden, arena, &layer.attention_norm);
    plan_norm(hidden, arena, &layer.mlp_norm);
    plan_linear(3 * hidden, hidden, type, true, arena, &layer.qkv);
    plan_linear(hidden, hidden, type, true, arena, &layer.dense);
    plan_linear(inner, hidden, type, true, arena, &layer.up);
    plan_linear(hidden, inner, type, true, arena, &layer.down);
  }
  plan_norm(hidden, arena, &weights->final_norm);
  plan_linear(config.vocab_size, hidden, type, false, arena, &weights->embed_out);
}

template <class T>
void load_weights(const ModelSource& source, const WeightSource& data, const Config& config,
                  MemoryMeter* meter, cudaStream_t stream, CudaWeights<T>* weights) {
  Uploader upload(source, data, meter, stream);
  for (const WeightSpec& spec : list_weights(config)) load_tensor(spec, &upload, weights);
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

#define PYTHIA_INSTANTIATE(T)                                                              \
  template void plan_weights<T>(const Config&, WeightType, DeviceArena*, CudaWeights<T>*); \
  template void load_weights<T>(const ModelSource&, const WeightSource&, const Config&,    \
                                MemoryMeter*, cudaStream_t, CudaWeights<T>*);
PYTHIA_INSTANTIATE(__half)
PYTHIA_INSTANTIATE(__nv_bfloat16)
#undef PYTHIA_INSTANTIATE

}  // namespace pythia
