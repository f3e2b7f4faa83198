// How far a long command has come, on standard error: a bar on a terminal; elsewhere a
// plain line every few seconds, so that a short run says nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace pythia {

class Progress {
 public:
  /// `unit` names what is counted: "tensors", "windows".
  Progress(std::string label, std::string unit, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` of `total` are finished.
  void update(std::int64_t done);

 private:
  void draw_bar(std::int64_t done);

  std::string label_;
  std::string unit_;
  std::int64_t total_;
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_draw_ = std::chrono::steady_clock::now();
};

}  // namespace pythia
