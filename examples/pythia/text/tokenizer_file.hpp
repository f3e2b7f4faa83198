// tokenizer.json of the Hugging Face tokenizers library: read, checked, and reduced to what a
// GPT-NeoX tokenizer needs.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "examples/pythia/text/bpe.hpp"

namespace pythia {

struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool normalized = false;  ///< matched after NFC; otherwise in the text as it is
};

struct TokenizerFile {
  std::vector<std::string> tokens;  ///< by id, as the file spells them
  std::vector<AddedToken> added;
  std::array<std::int32_t, 256> byte_ids;  ///< id of each single byte, -1 where it has none
  std::vector<Merge> merges;               ///< in rank order
};

/// Throws Error naming file and field for anything but NFC + ByteLevel + BPE, for ids that are not
/// 0 to n-1 once each, for merges of unknown tokens, and for a vocabulary that lacks a byte which
/// UTF-8 text can contain.
TokenizerFile load_tokenizer_file(const std::filesystem::path& file);

}  // namespace pythia
