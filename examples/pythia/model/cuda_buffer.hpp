// Device memory with owners: one slab for everything that lives as long as the engine, short-lived
// buffers beside it, and a count of both.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "examples/pythia/io/error.hpp"
#include "examples/pythia/model/cuda_check.hpp"

namespace pythia {

/// Bytes of device memory in use, and the most there were.
struct MemoryMeter {
  std::size_t current = 0;
  std::size_t peak = 0;

  void add(std::size_t bytes) {
    current += bytes;
    peak = std::max(peak, current);
  }
};

/// Raw device memory, freed with its owner.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(std::size_t bytes, MemoryMeter* meter) : bytes_(bytes), meter_(meter) {
    check_cuda(cudaMalloc(&data_, bytes), "cudaMalloc");
    meter_->add(bytes);
  }
  DeviceBytes(DeviceBytes&& other) noexcept { swap(other); }
  DeviceBytes& operator=(DeviceBytes&& other) noexcept {
    DeviceBytes(std::move(other)).swap(*this);
    return *this;
  }
  ~DeviceBytes() {
    if (data_ == nullptr) return;
    cudaFree(data_);
    meter_->current -= bytes_;
  }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  std::size_t size() const { return bytes_; }

 private:
  void swap(DeviceBytes& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(meter_, other.meter_);
  }

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  MemoryMeter* meter_ = nullptr;
};

/// One allocation cut into many: add() every pointer that shall be set, look at bytes(), then
/// allocate() once. So the need is known, and refused, before anything is loaded. The registered
/// pointers must stay where they are until allocate().
class DeviceArena {
 public:
  template <class T>
  void add(T** pointer, std::size_t count) {
    const std::size_t offset = bytes_;
    bytes_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    setters_.push_back(
        [pointer, offset](std::byte* base) { *pointer = reinterpret_cast<T*>(base + offset); });
  }

  std::size_t bytes() const { return bytes_; }
  const std::byte* data() const { return slab_.data(); }  ///< null before allocate()

  /// Throws Error with both figures when the slab and `extra` bytes of passing need do not fit the
  /// device's free memory. The slab is zeroed.
  void allocate(std::size_t extra, MemoryMeter* meter) {
    std::size_t free = 0;
    std::size_t total = 0;
    check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    if (bytes_ + extra > free) {
      throw Error("too little device memory: needed " + std::to_string(bytes_ + extra) +
                  " bytes, free " + std::to_string(free) + " bytes");
    }
    slab_ = DeviceBytes(bytes_, meter);
    check_cuda(cudaMemset(slab_.data(), 0, bytes_), "cudaMemset");
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // before any other stream
    for (const auto& set : setters_) set(slab_.data());
    setters_.clear();
  }

 private:
  static constexpr std::size_t kAlignment = 256;

  std::size_t bytes_ = 0;
  std::vector<std::function<void(std::byte*)>> setters_;
  DeviceBytes slab_;
};

/// Page-locked host memory that kernels can write.
template <class T>
class PinnedArray {
 public:
  explicit PinnedArray(std::size_t count) {
    void* data = nullptr;
    check_cuda(cudaHostAlloc(&data, count * sizeof(T), cudaHostAllocMapped), "cudaHostAlloc");
    data_ = static_cast<T*>(data);
    void* device = nullptr;
    check_cuda(cudaHostGetDevicePointer(&device, data, 0), "cudaHostGetDevicePointer");
    device_ = static_cast<T*>(device);
  }
  ~PinnedArray() { cudaFreeHost(data_); }
  PinnedArray(const PinnedArray&) = delete;
  PinnedArray& operator=(const PinnedArray&) = delete;

  T* device() const { return device_; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  T* device_ = nullptr;
};

}  // namespace pythia
