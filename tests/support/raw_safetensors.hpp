// Safetensors files byte by byte, so that tests can write the ones no writer would.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace test_support {

/// A file whose length field says `length`, whatever the header's size.
inline std::string raw_safetensors(std::uint64_t length, std::string_view header,
                                   std::string_view data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file += static_cast<char>(length >> (8 * i) & 0xFF);
  file += header;
  file += data;
  return file;
}

inline std::string raw_safetensors(std::string_view header, std::string_view data) {
  return raw_safetensors(header.size(), header, data);
}

}  // namespace test_support
