// Quantizes two rows of weights on the GPU.
#include <cuda_runtime.h>

#include <cstdio>

#include <waterweight/quantize.cuh>

// Device memory, without initialization code, for a program this small.
__device__ float w[2][4] = {{1.0f, -0.5f, 0.25f, 0.0f}, {2.0f, 127.0f, -64.0f, 3.0f}};
__device__ std::int8_t q[2][4];
__device__ float scale[2];
__device__ int bad_rows;

template <class T>
T* address_of(const void* symbol) {
  void* address = nullptr;
  return cudaGetSymbolAddress(&address, symbol) == cudaSuccess ? static_cast<T*>(address) : nullptr;
}

int main() {
  const cudaError_t status = waterweight::quantize_per_channel(
      waterweight::matrix_view<float>{address_of<float>(w), 2, 4, 4},
      {address_of<std::int8_t>(q), address_of<float>(scale), 2, 4, 4}, address_of<int>(&bad_rows),
      nullptr);
  float scales[2] = {};
  if (status == cudaSuccess) cudaMemcpyFromSymbol(scales, scale, sizeof(scales));
  std::printf("%s: scale %g and %g\n", cudaGetErrorString(status), scales[0], scales[1]);
  return scales[1] == 1.0f ? 0 : 1;
}
