#include "data/utf8.h"

#include "data/tokenizers/code_points.h"

namespace satune {
namespace {

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    if (!c.valid) return i;
    i += c.length;
  }
  return std::nullopt;
}

std::string_view trim_white_space(std::string_view text) {
  size_t begin = text.size(), end = 0;  // of what is left: from the first to past the last other character
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    if (!c.valid || !is_white_space(c.value)) {
      if (begin == text.size()) begin = i;
      end = i + c.length;
    }
    i += c.length;
  }
  return begin == text.size() ? std::string_view() : text.substr(begin, end - begin);
}

int64_t count_white_space_runs(std::string_view text) {
  int64_t runs = 0;
  bool inside = false;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    const bool white = c.valid && is_white_space(c.value);
    runs += white && !inside;
    inside = white;
    i += c.length;
  }
  return runs;
}

}  // namespace satune
