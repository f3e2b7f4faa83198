// GPT-2's byte-level alphabet: each byte is written as one printable character, so that
// vocabularies can be JSON strings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace pythia {

/// The character that stands for a byte, as UTF-8.
const std::string& symbol_of_byte(std::uint8_t byte);

/// The bytes that a token's text (valid UTF-8) stands for; nothing if one of its characters is not
/// in the alphabet.
std::optional<std::string> bytes_of_symbols(std::string_view token);

}  // namespace pythia
