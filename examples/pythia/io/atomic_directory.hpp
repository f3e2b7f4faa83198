// A directory that is either complete or not there.
#pragma once

#include <filesystem>

namespace pythia {

/// A directory that appears under its final name only when complete: create, fill path(), commit().
/// The work is done in a sibling directory, NAME.incomplete-PID, that the destructor removes when
/// commit() was not reached; a killed run leaves that, and nothing under the final name. Missing
/// parents are made. Refuses to replace an existing file or non-empty directory. All of it throws
/// Error.
class AtomicDirectory {
 public:
  explicit AtomicDirectory(const std::filesystem::path& final_path);
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }

  /// Flushes every file to disk, then renames.
  void commit();

 private:
  std::filesystem::path final_;
  std::filesystem::path temporary_;
  bool committed_ = false;
};

}  // namespace pythia
