// Argument checks and the one place where kernels are launched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include <waterweight/types.hpp>

WATERWEIGHT_ARCH_NAMESPACE_BEGIN
namespace detail {

/// Keeps an argument out of template deduction, so that implicit conversions apply to it.
template <class T>
struct type_identity {
  using type = T;
};
template <class T>
using type_identity_t = typename type_identity<T>::type;

/// How a kernel is launched beyond its grid.
struct launch_options {
  int cluster = 1;         ///< blocks of a cluster, along x
  bool dependent = false;  ///< may start before the kernel ahead of it has ended
};

/// Launches `kernel`, making room for its dynamic shared memory first, and returns the launch's own
/// code: an error left behind by earlier work of the caller is neither reported here nor cleared.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
                   const launch_options& options, cudaStream_t stream,
                   Arguments... arguments) noexcept {
  if (shared_bytes > 16 * 1024) {
    // The limit, and the share of L1 that lets as many blocks as possible reside on an SM.
    const void* function = reinterpret_cast<const void*>(kernel);
    cudaError_t status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
    status = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (options.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(options.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (options.dependent) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) noexcept {
  return launch(kernel, grid, threads, shared_bytes, launch_options{}, stream, arguments...);
}

/// True if the code of `kernel` that runs on this device was compiled for compute capability
/// `capability` (10 * major + minor) or newer: not so where the driver compiles older PTX for it.
template <class... Parameters>
bool compiled_for(int capability, void (*kernel)(Parameters...)) noexcept {
  cudaFuncAttributes attributes = {};
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess &&
         attributes.ptxVersion >= capability;
}

/// Launches a kernel that begins with follow_earlier_kernels(): where its code can, it starts while
/// the last blocks of the kernel ahead still run, which hides what a launch costs.
template <class... Parameters, class... Arguments>
cudaError_t launch_following(void (*kernel)(Parameters...), dim3 grid, int threads,
                             std::size_t shared_bytes, cudaStream_t stream,
                             Arguments... arguments) noexcept {
  return launch(kernel, grid, threads, shared_bytes, launch_options{1, compiled_for(90, kernel)},
                stream, arguments...);
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

/// Sizes fit the kernels' 32-bit indices and rows do not overlap.
inline bool valid_matrix(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t ld) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  return data != nullptr && rows >= 1 && cols >= 1 && rows <= kMax && cols <= kMax && ld >= cols &&
         ld <= kMax;
}

template <class T>
bool valid_matrix(const matrix_view<T>& m) {
  return valid_matrix(m.data, m.rows, m.cols, m.ld);
}

inline bool valid_weights(const int8_weight_view& w) {
  return valid_matrix(w.data, w.rows, w.cols, w.ld) && w.scale != nullptr;
}

/// `needed` bytes are there (none may be needed) and the pointer is not null when some are
/// promised.
inline bool valid_workspace(const workspace& ws, std::size_t needed) {
  return ws.bytes >= needed && (ws.bytes == 0 || ws.data != nullptr);
}

}  // namespace detail
WATERWEIGHT_ARCH_NAMESPACE_END
