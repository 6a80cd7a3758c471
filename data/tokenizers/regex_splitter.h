// Cutting text at the matches of a pre-tokenizer's regular expression.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace satune {

/// A pattern of a tokenizer.json through PCRE2, whose own Unicode tables are too old: \p{L}, \p{N}, \s and
/// \S are replaced by the ranges of unicode_classes.h, so that they mean what the tokenizers library means.
class RegexSplitter {
 public:
  enum class Syntax { kRegex, kLiteral };

  /// Throws BadInput with `where` when PCRE2 does not accept the pattern.
  RegexSplitter(std::string_view pattern, Syntax syntax, const std::string& where);
  ~RegexSplitter();
  RegexSplitter(RegexSplitter&&) noexcept;
  RegexSplitter& operator=(RegexSplitter&&) noexcept;

  /// A stretch of the text and whether it is a match. All stretches together are the text; none is empty.
  using Stretch = std::pair<std::string_view, bool>;
  /// `text` must be well-formed UTF-8. Thread-safe.
  std::vector<Stretch> split(std::string_view text) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

/// The pattern that ByteLevel uses unless it is told not to (GPT-2's).
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace satune
