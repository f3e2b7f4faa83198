#include "examples/pythia/cli/output_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>

#include "examples/pythia/io/error.hpp"

namespace pythia {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, int code) {
  throw Error(path.string() + ": cannot write: " + std::strerror(code));
}

fs::path temporary_beside(const fs::path& path) {
  return path.string() + ".tmp" + std::to_string(::getpid());
}

/// Closes and, unless told to keep it, removes what it opened.
class ScopedFile {
 public:
  ScopedFile(const fs::path& path, int flags) : path_(path) {
    descriptor_ = ::open(path.c_str(), flags | O_WRONLY | O_CLOEXEC, 0666);
    created_ = descriptor_ >= 0 && (flags & O_CREAT) != 0;
  }
  ~ScopedFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (created_) ::unlink(path_.c_str());
  }
  ScopedFile(const ScopedFile&) = delete;
  ScopedFile& operator=(const ScopedFile&) = delete;

  bool is_open() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }

  bool rename_to(const fs::path& target) {
    if (::rename(path_.c_str(), target.c_str()) != 0) return false;
    created_ = false;
    return true;
  }

 private:
  fs::path path_;
  int descriptor_ = -1;
  bool created_ = false;
};

bool write_all(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

}  // namespace

OutputFile::OutputFile(fs::path path) : path_(std::move(path)) {
  if (path_.empty()) return;
  std::error_code ignored;
  const fs::file_status status = fs::status(path_, ignored);
  if (fs::is_directory(status)) fail(path_, EISDIR);
  direct_ = fs::exists(status) && !fs::is_regular_file(status);
  if (direct_) {
    if (::access(path_.c_str(), W_OK) != 0) fail(path_, errno);
    return;
  }
  if (fs::is_symlink(path_, ignored)) {
    const fs::path target = fs::weakly_canonical(path_, ignored);
    if (!ignored) path_ = target;
  }
  const ScopedFile probe(temporary_beside(path_), O_CREAT | O_EXCL);
  if (!probe.is_open()) fail(path_, errno);
}

void OutputFile::write(std::string_view bytes) const {
  if (path_.empty()) return;
  ScopedFile file(direct_ ? path_ : temporary_beside(path_), direct_ ? 0 : O_CREAT | O_EXCL);
  if (!file.is_open() || !write_all(file.descriptor(), bytes)) fail(path_, errno);
  if (direct_) return;
  if (::fsync(file.descriptor()) != 0 || !file.rename_to(path_)) fail(path_, errno);
}

void OutputFile::write_json(const nlohmann::ordered_json& value) const {
  if (!path_.empty()) write(value.dump(2) + "\n");
}

void write_stdout(std::string_view bytes) {
  if (!write_all(STDOUT_FILENO, bytes)) fail("standard output", errno);
}

}  // namespace pythia
