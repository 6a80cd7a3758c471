#include "data/tokenizers/code_points.h"

namespace satune {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Table 3-7 of the Unicode standard: how many bytes follow a lead byte, and the range of the first of them
// (all others are 80..BF). Zero followers: not a lead byte.
struct Lead {
  uint32_t followers;
  unsigned char low, high;
};

Lead classify_lead(unsigned char byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

CodePoint code_point_at(std::string_view text, size_t position) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(position);
  if (first < 0x80) return {first, 1, true};
  const Lead lead = classify_lead(first);
  if (lead.followers == 0) return {0xFFFD, 1, false};
  char32_t value = first & (0x3F >> lead.followers);
  for (uint32_t i = 1; i <= lead.followers; ++i) {
    if (position + i >= text.size()) return {0xFFFD, i, false};
    const unsigned char next = byte(position + i);
    const unsigned char low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xBF;
    if (next < low || next > high) return {0xFFFD, i, false};
    value = value << 6 | (next & 0x3F);
  }
  return {value, lead.followers + 1, true};
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint point = code_point_at(text, i);
    out += point.valid ? text.substr(i, point.length) : kReplacement;
    i += point.length;
  }
  return out;
}

void append_utf8(std::string& text, char32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xC0 | c >> 6);
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    text += static_cast<char>(0xE0 | c >> 12);
    text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | c >> 18);
    text += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (c & 0x3F));
  }
}

}  // namespace satune
