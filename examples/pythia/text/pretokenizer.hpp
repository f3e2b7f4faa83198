// The GPT-2 pre-tokenizer: cuts a text into the words that BPE merges within.
#pragma once

#include <string_view>
#include <vector>

namespace pythia {

/// The successive matches of
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// in valid UTF-8. Together they are the whole text.
std::vector<std::string_view> split_words(std::string_view text);

}  // namespace pythia
