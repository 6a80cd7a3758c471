// Safetensors files byte by byte, well formed or not.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace satune {

/// 8 bytes of header length, the header, `data_bytes` bytes of data.
inline std::string raw_safetensors(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>('a' + i % 26);
  return file;
}

}  // namespace satune
