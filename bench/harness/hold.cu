#include "bench/harness/chain.hpp"

namespace bench {
namespace {

__global__ void hold_kernel(long long cycles) {
  const long long begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

}  // namespace

void hold(cudaStream_t stream) {
  hold_kernel<<<1, 1, 0, stream>>>(70000);
  check(cudaGetLastError(), "holding the stream");
}

}  // namespace bench
