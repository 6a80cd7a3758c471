// The three kinds of characters that pre-tokenizers tell apart, as the tokenizers library and tiktoken see
// them (both: Unicode 16.0). The tables are generated, see generate_unicode_classes.py.
#pragma once

#include <cstdint>
#include <span>

namespace satune {

enum class CharacterClass : uint8_t { kOther, kLetter, kNumber, kSpace };

struct CodePointRange {
  char32_t first, last;
};

/// \p{L}, \p{N} or \s; kOther for everything else.
CharacterClass classify(char32_t code_point);

/// What the Digits pre-tokenizer takes for a digit: \p{N} of a slightly newer Unicode.
bool is_digit(char32_t code_point);

/// The ranges of one class, ascending. Empty for kOther.
std::span<const CodePointRange> ranges_of(CharacterClass character_class);

}  // namespace satune
