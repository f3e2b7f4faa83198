// The Unicode knowledge the tokenizer needs: character classes and normalization form C.
#pragma once

#include <string>
#include <string_view>

namespace pythia {

/// The classes of the GPT-2 pre-tokenizer's regular expression: \s, \p{L}, \p{N}, and the rest.
enum class CharClass { space, letter, number, other };

CharClass char_class(char32_t code);

/// Normalization form C of valid UTF-8. O(n log n) even for long runs of combining marks.
std::string nfc(std::string_view text);

}  // namespace pythia
