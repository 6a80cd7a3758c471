// SHA-256 (FIPS 180-4), for keys of caches and for noticing that data changed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace satune {

class Sha256 {
 public:
  void update(std::span<const std::byte> bytes);
  /// The text's size and then its bytes, so that ("ab", "c") and ("a", "bc") differ.
  void update_field(std::string_view text);
  void update_field(uint64_t value);
  /// 64 lower-case hexadecimal digits; ends the computation.
  std::string hex();

 private:
  void compress(const std::byte* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> pending_{};
  uint64_t size_ = 0;
};

}  // namespace satune
