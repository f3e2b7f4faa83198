// Owned device memory, and the rotation that keeps a chain of launches out of the L2 cache.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bench/harness/check.hpp"

namespace bench {

template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t count) : count_(count) {
    const cudaError_t status = cudaMalloc(&data_, count * sizeof(T));
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an allocation that fails harms nothing that follows
    throw std::runtime_error("allocating " + std::to_string(count * sizeof(T)) +
                             " bytes of device memory: " + cudaGetErrorString(status));
  }
  explicit DeviceBuffer(const std::vector<T>& host) : DeviceBuffer(host.size()) { upload(host); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }

  T* data() const { return data_; }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }

  void upload(const std::vector<T>& host) {
    check(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
          "uploading");
    // The copy from pageable memory may still be under way, and other streams do not wait for it.
    check(cudaDeviceSynchronize(), "uploading");
  }
  /// All bits set, a NaN in every floating type: what a kernel forgets to write shows.
  void poison(cudaStream_t stream) const {
    check(cudaMemsetAsync(data_, 0xFF, bytes(), stream), "poisoning a buffer");
  }

 private:
  void swap(DeviceBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
  }

  T* data_ = nullptr;
  std::size_t count_ = 0;
};

/// `count` elements from device memory.
template <class T>
std::vector<std::remove_const_t<T>> download(T* device, std::size_t count) {
  std::vector<std::remove_const_t<T>> host(count);
  check(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost), "downloading");
  return host;
}

/// `rows` rows of `cols` elements that start `stride` elements apart, packed.
template <class T>
std::vector<std::remove_const_t<T>> download_rows(T* device, std::size_t rows, std::size_t cols,
                                                  std::size_t stride) {
  std::vector<std::remove_const_t<T>> host(rows * cols);
  check(cudaMemcpy2D(host.data(), cols * sizeof(T), device, stride * sizeof(T), cols * sizeof(T),
                     rows, cudaMemcpyDeviceToHost),
        "downloading rows");
  return host;
}

/// Copies of a `bytes` large operand that touch three times the L2 before one of them is reused.
inline int cold_copies(std::size_t bytes, std::int64_t l2_bytes) {
  const std::int64_t size = static_cast<std::int64_t>(bytes);
  return static_cast<int>(std::max<std::int64_t>(3, (3 * l2_bytes + size - 1) / size));
}

/// Distinct copies of one operand in one allocation; launch i of a chain takes copy i % copies.
/// With one copy the operand stays as warm as its size lets it.
template <class T>
class RotatedBuffer {
 public:
  RotatedBuffer() = default;
  RotatedBuffer(std::size_t count, int copies)
      : stride_((count + kAlign - 1) / kAlign * kAlign), copies_(copies), all_(stride_ * copies) {}

  T* operator[](int launch) const { return all_.data() + stride_ * (launch % copies_); }
  int copies() const { return copies_; }
  /// Every copy, for filling.
  const DeviceBuffer<T>& all() const { return all_; }

 private:
  static constexpr std::size_t kAlign = 256;

  std::size_t stride_ = 0;
  int copies_ = 1;
  DeviceBuffer<T> all_;
};

}  // namespace bench
