// UTF-8 at the borders of the program: repair on the way in, whole characters on the way out.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pythia {

enum class Utf8Status { valid, invalid, incomplete };

/// What stands at the start of some bytes: a character, a maximal invalid subsequence (Unicode 15,
/// section 3.9), or the valid beginning of a character that the text ends in.
struct Utf8Char {
  Utf8Status status = Utf8Status::invalid;
  char32_t code = 0;       ///< when valid
  std::size_t length = 0;  ///< bytes of it, >= 1
};

/// `bytes` must not be empty.
Utf8Char decode_utf8(std::string_view bytes);

struct Utf8Repair {
  std::string text;              ///< valid UTF-8
  std::size_t replacements = 0;  ///< U+FFFD inserted
  std::size_t first_offset = 0;  ///< byte offset of the first invalid byte in the input
};

/// Replaces each maximal invalid subsequence by U+FFFD (Unicode 15, section 3.9, as Python's
/// errors="replace" does).
Utf8Repair repair_utf8(std::string_view bytes);

/// Holds back an incomplete trailing character until the bytes that finish it arrive.
class Utf8Stream {
 public:
  /// Returns what can be printed now: whole characters only, invalid bytes as U+FFFD.
  std::string push(std::string_view bytes);

  /// Returns what is left at the end of the text (an unfinished character becomes U+FFFD).
  std::string finish();

 private:
  std::string pending_;
};

}  // namespace pythia
