// How far a long command has come, on standard error: a bar on a terminal, plain lines elsewhere.
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
  int last_tenth_ = 0;
  std::chrono::steady_clock::time_point last_draw_{};
};

}  // namespace pythia
