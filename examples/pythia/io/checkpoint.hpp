// A Hugging Face model directory: every tensor of its safetensors files by name, memory-mapped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "examples/pythia/io/dtype.hpp"

namespace pythia {

class MappedFile;

struct Tensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;  ///< row-major; unaligned; lives as long as the Checkpoint
  std::size_t bytes = 0;
  std::filesystem::path file;  ///< for messages
};

class Checkpoint {
 public:
  /// Opens DIR/model.safetensors, or the shards DIR/model.safetensors.index.json names. Every
  /// header is checked (length, JSON, offsets in range and disjoint, bytes = shape x dtype) before
  /// this returns; throws Error otherwise.
  static Checkpoint open(const std::filesystem::path& dir);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  bool contains(std::string_view name) const;

  /// Throws Error naming the directory and the tensor when it is missing.
  const Tensor& at(std::string_view name) const;

  /// The same, and throws unless the shape is `shape`.
  const Tensor& at(std::string_view name, const std::vector<std::int64_t>& shape) const;

  /// All tensors, by name.
  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }

  /// `__metadata__` of the files, merged.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  explicit Checkpoint(std::filesystem::path dir);
  void add_file(const std::filesystem::path& file);

  std::filesystem::path dir_;
  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace pythia
