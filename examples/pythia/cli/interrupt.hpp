// SIGINT and SIGTERM as an exception at a safe point, so that destructors remove temporary files.
#pragma once

namespace pythia {

/// Not an Error: main() removes nothing more and ends the process by the same signal.
struct Interrupted {
  int signal;
};

/// While it lives, the first SIGINT or SIGTERM is only noted; a second one kills as usual.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  /// Throws Interrupted when a signal was noted.
  void check() const;
};

/// Ends the process as `signal` would have.
[[noreturn]] void die_of(int signal);

}  // namespace pythia
