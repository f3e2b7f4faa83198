// See byte_alphabet.hpp.
#include "examples/pythia/text/byte_alphabet.hpp"

#include <array>

#include "examples/pythia/text/utf8.hpp"

namespace pythia {
namespace {

// Bytes that are printable in Latin-1 stand for themselves; the 68 others are numbered from U+0100.
constexpr bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}
constexpr char32_t first_moved = 0x100;
constexpr std::size_t alphabet_end = first_moved + 68;

struct Alphabet {
  std::array<std::string, 256> symbols;
  std::array<int, alphabet_end> bytes;  // -1: not a symbol

  Alphabet() {
    bytes.fill(-1);
    char32_t moved = first_moved;
    for (int byte = 0; byte < 256; ++byte) {
      const char32_t code = is_printable(byte) ? static_cast<char32_t>(byte) : moved++;
      bytes[code] = byte;
      std::string& symbol = symbols[static_cast<std::size_t>(byte)];
      if (code >= 0x80) {
        symbol += static_cast<char>(0xC0 | (code >> 6));
        symbol += static_cast<char>(0x80 | (code & 0x3F));
      } else {
        symbol += static_cast<char>(code);
      }
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

const std::string& symbol_of_byte(std::uint8_t byte) { return alphabet().symbols[byte]; }

std::optional<std::string> bytes_of_symbols(std::string_view token) {
  std::string bytes;
  for (std::size_t at = 0; at < token.size();) {
    const Utf8Char next = decode_utf8(token.substr(at));
    if (next.code >= alphabet_end || alphabet().bytes[next.code] < 0) return std::nullopt;
    bytes += static_cast<char>(alphabet().bytes[next.code]);
    at += next.length;
  }
  return bytes;
}

}  // namespace pythia
