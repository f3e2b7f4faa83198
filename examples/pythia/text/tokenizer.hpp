// The GPT-NeoX tokenizer from a Hugging Face tokenizer.json: NFC, added tokens, the GPT-2
// byte-level pre-tokenizer and BPE merges.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pythia {

class Tokenizer {
 public:
  /// Reads and checks DIR/tokenizer.json. Throws Error naming the file and the field.
  static Tokenizer load(const std::filesystem::path& dir);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of a text. Invalid UTF-8 must have been replaced before (see utf8.hpp).
  std::vector<std::int32_t> encode(std::string_view text) const;

  /// Text of ids as transformers' decode(skip_special_tokens=false) gives it. Throws Error on an id
  /// outside [0, size()).
  std::string decode(const std::vector<std::int32_t>& ids) const;

  /// The raw bytes one id stands for (they may end inside a UTF-8 character).
  const std::string& bytes(std::int32_t id) const;

  /// Ids known to the tokenizer: the sampler must not choose one at or above it.
  int size() const;

  /// Id of "<|endoftext|>", -1 when there is none.
  int end_of_text() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace pythia
