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

#include "examples/pythia/io/dtype.hpp"

namespace pythia {

struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
};

/// Construct with all specs (the header is written first), then write() each tensor's bytes in that
/// order, then finish(). Throws Error on any I/O failure, naming the file. finish() flushes to
/// disk.
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
  std::filesystem::path file_;
  std::vector<TensorSpec> specs_;
  std::size_t next_ = 0;
  std::FILE* stream_ = nullptr;
};

/// A directory that appears under its final name only when complete: create, fill path(), commit().
/// The work is done in a sibling temporary directory that the destructor removes when commit() was
/// not reached; a killed run leaves nothing under the final name. Refuses to replace an existing
/// non-empty directory (throws Error).
class AtomicDirectory {
 public:
  explicit AtomicDirectory(std::filesystem::path final_path);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }
  void commit();

 private:
  std::filesystem::path final_;
  std::filesystem::path temporary_;
  bool committed_ = false;
};

}  // namespace pythia
