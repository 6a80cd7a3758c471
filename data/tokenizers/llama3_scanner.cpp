#include "data/tokenizers/llama3_scanner.h"

#include "data/tokenizers/unicode_classes.h"

namespace satune {
namespace {

struct Character {
  CharacterClass kind = CharacterClass::kOther;
  size_t end = 0;  // offset after it; equal to its own offset at the end of the text
  bool newline = false;
};

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  /// End of the match that begins at `begin` (< size). One line for each alternative of the pattern.
  size_t match(size_t begin) const {
    const Character first = at(begin);
    if (text_[begin] == '\'') {
      if (const size_t end = contraction(begin); end > begin) return end;
    }
    if (first.kind == CharacterClass::kLetter) return run(first.end, CharacterClass::kLetter);
    if (first.kind == CharacterClass::kNumber) return numbers(first.end);
    if (!first.newline && is(first.end, CharacterClass::kLetter))
      return run(first.end, CharacterClass::kLetter);
    if (first.kind == CharacterClass::kOther) return newlines(run(first.end, CharacterClass::kOther));
    if (text_[begin] == ' ' && is(first.end, CharacterClass::kOther)) {
      return newlines(run(first.end, CharacterClass::kOther));
    }
    return spaces(begin);
  }

 private:
  Character at(size_t i) const {
    const auto byte = static_cast<unsigned char>(text_[i]);
    if (byte < 0x80) return {classify(byte), i + 1, byte == '\n' || byte == '\r'};
    const auto next = [&](size_t k) { return static_cast<char32_t>(text_[i + k] & 0x3F); };
    if (byte < 0xE0) return {classify((byte & 0x1F) << 6 | next(1)), i + 2, false};
    if (byte < 0xF0) return {classify((byte & 0x0F) << 12 | next(1) << 6 | next(2)), i + 3, false};
    return {classify((byte & 0x07) << 18 | next(1) << 12 | next(2) << 6 | next(3)), i + 4, false};
  }

  bool is(size_t i, CharacterClass kind) const { return i < text_.size() && at(i).kind == kind; }

  size_t run(size_t i, CharacterClass kind) const {
    while (i < text_.size()) {
      const Character next = at(i);
      if (next.kind != kind) break;
      i = next.end;
    }
    return i;
  }

  size_t newlines(size_t i) const {
    while (i < text_.size() && (text_[i] == '\n' || text_[i] == '\r')) ++i;
    return i;
  }

  /// \p{N}{1,3}, the first of which ends at i.
  size_t numbers(size_t i) const {
    for (int more = 0; more < 2 && is(i, CharacterClass::kNumber); ++more) i = at(i).end;
    return i;
  }

  /// (?i:'s|'t|'re|'ve|'m|'ll|'d); `begin` itself when there is none. U+017F folds to s.
  size_t contraction(size_t begin) const {
    const auto lower = [&](size_t i) { return i < text_.size() ? static_cast<char>(text_[i] | 0x20) : '\0'; };
    const char first = lower(begin + 1), second = lower(begin + 2);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return begin + 2;
    if ((first == 'r' || first == 'v') && second == 'e') return begin + 3;
    if (first == 'l' && second == 'l') return begin + 3;
    if (text_.substr(begin + 1, 2) == "\xC5\xBF") return begin + 3;
    return begin;
  }

  /// \s*[\r\n]+|\s+(?!\S)|\s+ : up to the run's last newline; else the run, less its last character when
  /// something follows that could take it along.
  size_t spaces(size_t begin) const {
    size_t last = begin, after_newline = begin, i = begin;
    while (i < text_.size()) {
      const Character next = at(i);
      if (next.kind != CharacterClass::kSpace) break;
      last = i;
      i = next.end;
      if (next.newline) after_newline = i;
    }
    if (after_newline > begin) return after_newline;
    return i == text_.size() || last == begin ? i : last;
  }

  std::string_view text_;
};

}  // namespace

void split_llama3(std::string_view text, std::vector<std::string_view>& pieces) {
  const Scanner scanner(text);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = scanner.match(begin);
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace satune
