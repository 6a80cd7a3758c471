// Walking over UTF-8 one code point at a time, ill-formed bytes included.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace satune {

struct CodePoint {
  char32_t value = 0;
  uint32_t length = 0;  ///< bytes, 1..4
  bool valid = true;
};

/// The code point at `position` (< text.size()). For bytes that are not UTF-8: valid is false, value is
/// U+FFFD and length is the longest prefix of a well-formed sequence found there (at least one byte), which
/// is what Python's errors="replace", Rust's from_utf8_lossy and the Unicode standard replace by one U+FFFD.
CodePoint code_point_at(std::string_view text, size_t position);

/// Every ill-formed part replaced by one U+FFFD, as bytes.decode("utf-8", errors="replace") does.
std::string replace_invalid_utf8(std::string_view text);

/// Appends the UTF-8 form of a code point (not a surrogate, at most U+10FFFF).
void append_utf8(std::string& text, char32_t code_point);

}  // namespace satune
