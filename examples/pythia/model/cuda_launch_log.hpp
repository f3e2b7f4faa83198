// The launches of a step by name, for measuring what each of them adds to its time.
#pragma once

#include <limits>
#include <string>
#include <vector>

namespace pythia {

struct TokenTimes;

/// Lets the first `most` launches of a sequence happen, and what it cannot do without, and notes
/// the others.
struct LaunchLog {
  struct Entry {
    std::string kind;
    double bytes;  ///< that it must move at least
  };

  int live_slots = 0;  ///< of each head's cache
  int most = std::numeric_limits<int>::max();
  bool advances = false;  ///< even if it is not among the first
  /// Null, or [blocks] of the token kernel, which then adds what it spends its time on.
  TokenTimes* times = nullptr;
  std::vector<Entry> entries;

  bool take(const char* kind, double bytes) {
    if (advances && std::string(kind) == "advance") return true;
    entries.push_back({kind, bytes});
    return static_cast<int>(entries.size()) <= most;
  }
};

}  // namespace pythia
