// Writes one safetensors file, tensor after tensor, so that a checkpoint larger than memory can be
// converted in one pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "examples/pythia/io/atomic_directory.hpp"  // IWYU pragma: export
#include "examples/pythia/io/dtype.hpp"

namespace pythia {

struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
};

/// Construct with all specs (the header is written first), then write() each tensor's bytes in that
/// order, then finish(), which flushes to disk. Throws Error on any I/O failure, naming the file; a
/// writer destroyed before finish() removes its file.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& file, std::vector<TensorSpec> specs,
                    const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  void write(const void* data, std::size_t bytes);  ///< bytes must equal the next spec's size
  void finish();

 private:
  void put(const void* data, std::size_t bytes);
  void abandon();

  std::filesystem::path file_;
  std::vector<TensorSpec> specs_;
  std::size_t next_ = 0;
  std::FILE* stream_ = nullptr;
};

}  // namespace pythia
