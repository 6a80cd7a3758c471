#include "data/tokenizers/unicode_classes.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>

namespace satune {
namespace {

#include "data/tokenizers/unicode_classes.inc"

// One byte for each code point up to the last letter of the ideographic planes; everything above is kOther.
constexpr char32_t kTableSize = 0x33480;
using Table = std::array<CharacterClass, kTableSize>;

std::unique_ptr<const Table> build_table() {
  auto table = std::make_unique<Table>();
  table->fill(CharacterClass::kOther);
  for (const auto kind : {CharacterClass::kLetter, CharacterClass::kNumber, CharacterClass::kSpace}) {
    for (const CodePointRange& range : ranges_of(kind)) {
      for (char32_t c = range.first; c <= range.last; ++c) table->at(c) = kind;
    }
  }
  return table;
}

}  // namespace

CharacterClass classify(char32_t code_point) {
  static const std::unique_ptr<const Table> table = build_table();
  return code_point < kTableSize ? (*table)[code_point] : CharacterClass::kOther;
}

bool is_digit(char32_t code_point) {
  const auto holds = [&](CodePointRange range) {
    return range.first <= code_point && code_point <= range.last;
  };
  return classify(code_point) == CharacterClass::kNumber ||
         (code_point > 0x10000 &&
          std::any_of(std::begin(kNewerDigitRanges), std::end(kNewerDigitRanges), holds));
}

std::span<const CodePointRange> ranges_of(CharacterClass character_class) {
  switch (character_class) {
    case CharacterClass::kLetter:
      return kLetterRanges;
    case CharacterClass::kNumber:
      return kNumberRanges;
    case CharacterClass::kSpace:
      return kSpaceRanges;
    case CharacterClass::kOther:
      break;
  }
  return {};
}

}  // namespace satune
