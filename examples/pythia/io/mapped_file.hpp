// A file's bytes, memory-mapped read-only.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>

namespace pythia {

class MappedFile {
 public:
  /// Throws Error unless `path` is (or links to) a readable regular file.
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace pythia
