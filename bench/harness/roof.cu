#include "bench/harness/roof.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "bench/harness/chain.hpp"
#include "bench/harness/device_buffer.cuh"
#include "bench/harness/random.cuh"

namespace bench {
namespace {

constexpr std::size_t kReadBytes = std::size_t{2560} << 20;
constexpr int kStageBytes = 8192;
constexpr int kMaxStages = 24;
constexpr int kPlainThreads = 256;
constexpr int kPlainLoads = 8;
constexpr int kPlainStep = kPlainThreads * kPlainLoads;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Announces one stage's bytes at `barrier` and asks the copy engine for them.
__device__ __forceinline__ void request(void* stage, const char* source, std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(kStageBytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(stage)),
      "l"(source), "r"(kStageBytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ void wait(std::uint64_t* barrier, int parity) {
  std::uint32_t done = 0;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}
#endif

/// One warp per SM, of which one thread keeps a ring of bulk copies full; nobody looks at the
/// bytes. Blocks take stages in turn, so that all of them walk through memory together. Compiled
/// for sm_90 and newer; elsewhere empty.
__global__ void __launch_bounds__(32, 1)
    bulk_read_kernel(const char* data, std::int64_t chunks, int stages) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char ring[];
  __shared__ __align__(8) std::uint64_t full[kMaxStages];
  if (threadIdx.x != 0) return;
  for (int i = 0; i < stages; ++i) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(&full[i])));
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  int stage = 0, lap = 0;
  // One lap more than there are chunks, so that every copy has arrived when the block ends.
  for (std::int64_t chunk = blockIdx.x; chunk < chunks + std::int64_t{stages} * gridDim.x;
       chunk += gridDim.x) {
    // A stage is free for its next chunk once the one of the lap before has arrived in it.
    if (lap > 0) wait(&full[stage], (lap - 1) & 1);
    if (chunk < chunks) {
      request(ring + stage * kStageBytes, data + chunk * kStageBytes, &full[stage]);
    }
    if (++stage == stages) {
      stage = 0;
      ++lap;
    }
  }
#endif
}

/// Each block reads `steps` * kPlainStep contiguous elements, with several independent 16-byte
/// loads per thread.
__global__ void __launch_bounds__(kPlainThreads)
    plain_read_kernel(const uint4* data, std::int64_t steps, std::uint32_t* sink) {
  const uint4* mine = data + steps * kPlainStep * blockIdx.x;
  std::uint32_t sum = 0;
  for (std::int64_t i = threadIdx.x; i < steps * kPlainStep; i += kPlainStep) {
    uint4 value[kPlainLoads];
#pragma unroll
    for (int u = 0; u < kPlainLoads; ++u) value[u] = __ldcs(mine + i + u * kPlainThreads);
#pragma unroll
    for (int u = 0; u < kPlainLoads; ++u) {
      sum += value[u].x ^ value[u].y ^ value[u].z ^ value[u].w;
    }
  }
  if (sum == 0x12345678u) *sink = sum;  // keeps the loads alive
}

cudaFuncAttributes attributes() {
  cudaFuncAttributes result = {};
  check(cudaFuncGetAttributes(&result, bulk_read_kernel), "asking for a kernel's attributes");
  return result;
}

/// Units per second of `work`, which does `amount` of them: the median of a few runs.
double rate(cudaStream_t stream, double amount, const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < 3; ++i) work();
  for (int i = 0; i < 15; ++i) seconds.push_back(time_once(stream, work));
  return amount / summarise(std::move(seconds)).median;
}

double matrix_roof(Cublas& cublas, cudaStream_t stream) {
  constexpr int kSize = 8192;
  constexpr std::size_t kCount = std::size_t{kSize} * kSize;
  const DeviceBuffer<__half> x(kCount), w(kCount), y(kCount);
  fill(x, normal_distribution{1.0f}, 1, stream);
  fill(w, normal_distribution{0.01f}, 2, stream);
  return rate(stream, 2.0 * kSize * kCount, [&] {
    check(cublas.gemm(x.data(), w.data(), y.data(), kSize, kSize, kSize), "the matrix roof");
  });
}

}  // namespace

std::string running_code() {
  const cudaFuncAttributes code = attributes();
  const std::string binary = std::to_string(code.binaryVersion);
  const std::string ptx = std::to_string(code.ptxVersion);
  return binary == ptx ? "sm_" + binary + " machine code"
                       : "compute_" + ptx + " PTX, compiled by the driver for sm_" + binary;
}

Roofs measure_roofs(const waterweight::device_info& device, Cublas& cublas, cudaStream_t stream) {
  std::size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for free memory");
  const std::size_t bytes = std::min(kReadBytes, free_bytes / 2) >> 20 << 20;
  const DeviceBuffer<std::uint32_t> buffer(bytes / sizeof(std::uint32_t));
  const DeviceBuffer<std::uint32_t> sink(1);
  fill(buffer, bits_distribution{}, 3, stream);

  Roofs roofs;
  const int blocks = 2 * device.sm_count;
  const std::size_t step_bytes = std::size_t{16} * kPlainStep * blocks;
  const std::size_t steps = bytes / step_bytes;
  roofs.plain_read = rate(stream, static_cast<double>(steps * step_bytes), [&] {
    plain_read_kernel<<<blocks, kPlainThreads, 0, stream>>>(
        reinterpret_cast<const uint4*>(buffer.data()), static_cast<std::int64_t>(steps),
        sink.data());
    check(cudaGetLastError(), "the plain read roof");
  });
  if (attributes().ptxVersion >= 90) {
    const int stages = std::min(kMaxStages, (device.max_shared_bytes - 1024) / kStageBytes);
    check(cudaFuncSetAttribute(bulk_read_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               stages * kStageBytes),
          "the bulk read roof");
    roofs.bulk_read = rate(stream, static_cast<double>(bytes), [&] {
      bulk_read_kernel<<<device.sm_count, 32, stages * kStageBytes, stream>>>(
          reinterpret_cast<const char*>(buffer.data()),
          static_cast<std::int64_t>(bytes / kStageBytes), stages);
      check(cudaGetLastError(), "the bulk read roof");
    });
  }
  const std::size_t half = bytes / 2;
  roofs.copy = rate(stream, 2.0 * static_cast<double>(half), [&] {
    check(cudaMemcpyAsync(reinterpret_cast<char*>(buffer.data()) + half, buffer.data(), half,
                          cudaMemcpyDeviceToDevice, stream),
          "the copy roof");
  });
  if (Cublas::available()) roofs.matrix = matrix_roof(cublas, stream);
  return roofs;
}

}  // namespace bench
