// See atomic_directory.hpp.
#include "examples/pythia/io/atomic_directory.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

#include "examples/pythia/io/message.hpp"

namespace pythia {
namespace {

namespace fs = std::filesystem;

// Names tried before giving up: each try that fails is the leftover of a killed run that had the
// same process id.
constexpr int max_tries = 1000;

void flush_to_disk(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  // EINVAL: a file system that cannot flush a directory.
  const bool flushed = fd >= 0 && (::fsync(fd) == 0 || errno == EINVAL);
  const int reason = errno;
  if (fd >= 0) ::close(fd);
  if (!flushed) throw system_error(path, "write", reason);
}

void check_replaceable(const fs::path& path) {
  std::error_code reason;
  const fs::file_status status = fs::symlink_status(path, reason);
  if (status.type() == fs::file_type::not_found) return;
  if (!fs::is_directory(status)) {
    throw mismatch(path, "output", "a new or empty directory", "something else of this name");
  }
  const bool empty = fs::is_empty(path, reason);
  if (reason) throw system_error(path, "read", reason.value());
  if (!empty) throw mismatch(path, "output", "a new or empty directory", "one with files in it");
}

fs::path make_temporary(const fs::path& final_path) {
  const std::string base = final_path.string() + ".incomplete-" + std::to_string(::getpid());
  for (int i = 0; i < max_tries; ++i) {
    const fs::path path = i == 0 ? base : base + "-" + std::to_string(i);
    if (::mkdir(path.c_str(), 0777) == 0) return path;
    const int reason = errno;
    if (reason != EEXIST) throw system_error(path, "create", reason);
  }
  throw file_error(base, "cannot create: too many leftovers of killed runs");
}

}  // namespace

AtomicDirectory::AtomicDirectory(const fs::path& final_path) {
  if (final_path.empty()) throw Error("output: expected a directory name, found \"\"");
  std::error_code reason;
  final_ = fs::weakly_canonical(fs::absolute(final_path), reason);
  if (reason) throw system_error(final_path, "resolve", reason.value());
  if (!final_.has_filename()) final_ = final_.parent_path();  // "name/"
  check_replaceable(final_);
  fs::create_directories(final_.parent_path(), reason);
  if (reason) throw system_error(final_.parent_path(), "create", reason.value());
  temporary_ = make_temporary(final_);
}

AtomicDirectory::~AtomicDirectory() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void AtomicDirectory::commit() {
  try {
    for (const auto& entry : fs::recursive_directory_iterator(temporary_)) {
      if (entry.is_regular_file() || entry.is_directory()) flush_to_disk(entry.path());
    }
  } catch (const fs::filesystem_error& e) {
    throw system_error(temporary_, "read", e.code().value());
  }
  flush_to_disk(temporary_);
  // rename() replaces an empty directory and refuses any other.
  if (std::rename(temporary_.c_str(), final_.c_str()) != 0) {
    const int reason = errno;
    throw system_error(final_, "create", reason);
  }
  committed_ = true;
  flush_to_disk(final_.parent_path());
}

}  // namespace pythia
