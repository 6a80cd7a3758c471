#include "data/tokenizers/regex_splitter.h"

#include <fmt/format.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdexcept>

#include "data/files/error.h"
#include "data/tokenizers/unicode_classes.h"

namespace satune {
namespace {

/// The inside of a bracket expression that matches one class.
std::string bracket_ranges(CharacterClass character_class) {
  std::string out;
  for (const CodePointRange& range : ranges_of(character_class)) {
    out += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<uint32_t>(range.first),
                       static_cast<uint32_t>(range.last));
  }
  return out;
}

struct Shorthand {
  std::string_view text;
  CharacterClass character_class;
  bool negated;
};

constexpr Shorthand kShorthands[] = {
    {R"(\p{L})", CharacterClass::kLetter, false}, {R"(\P{L})", CharacterClass::kLetter, true},
    {R"(\p{N})", CharacterClass::kNumber, false}, {R"(\P{N})", CharacterClass::kNumber, true},
    {R"(\s)", CharacterClass::kSpace, false},     {R"(\S)", CharacterClass::kSpace, true},
};

const Shorthand* shorthand_at(std::string_view pattern) {
  for (const Shorthand& shorthand : kShorthands) {
    if (pattern.substr(0, shorthand.text.size()) == shorthand.text) return &shorthand;
  }
  return nullptr;
}

/// Replaces the shorthands by ranges. A negated one within brackets stays PCRE2's.
std::string expand_shorthands(std::string_view pattern) {
  std::string out;
  bool in_brackets = false;
  for (size_t i = 0; i < pattern.size();) {
    const Shorthand* shorthand = shorthand_at(pattern.substr(i));
    if (shorthand != nullptr && !(in_brackets && shorthand->negated)) {
      const std::string ranges = bracket_ranges(shorthand->character_class);
      out += in_brackets ? ranges : fmt::format("[{}{}]", shorthand->negated ? "^" : "", ranges);
      i += shorthand->text.size();
    } else if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      out += pattern.substr(i, 2);
      i += 2;
    } else {
      if (pattern[i] == '[') in_brackets = true;
      if (pattern[i] == ']') in_brackets = false;
      out += pattern[i++];
    }
  }
  return out;
}

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

size_t character_end(std::string_view text, size_t i) {
  do ++i;
  while (i < text.size() && (text[i] & 0xC0) == 0x80);
  return i;
}

}  // namespace

struct RegexSplitter::Code {
  pcre2_code* compiled = nullptr;
  ~Code() { pcre2_code_free(compiled); }
};

RegexSplitter::~RegexSplitter() = default;
RegexSplitter::RegexSplitter(RegexSplitter&&) noexcept = default;
RegexSplitter& RegexSplitter::operator=(RegexSplitter&&) noexcept = default;

RegexSplitter::RegexSplitter(std::string_view pattern, Syntax syntax, const std::string& where)
    : code_(std::make_unique<Code>()) {
  const std::string source = syntax == Syntax::kRegex ? expand_shorthands(pattern) : std::string(pattern);
  const uint32_t options = PCRE2_UTF | (syntax == Syntax::kRegex ? PCRE2_UCP : PCRE2_LITERAL);
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), options, &error,
                                  &offset, nullptr);
  if (code_->compiled == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    throw bad_input(where, fmt::format("\"{}\" ({})", pattern, reinterpret_cast<const char*>(message)),
                    "a regular expression");
  }
  pcre2_jit_compile(code_->compiled, PCRE2_JIT_COMPLETE);  // slower without, but the same
}

std::vector<RegexSplitter::Stretch> RegexSplitter::split(std::string_view text) const {
  std::vector<Stretch> stretches;
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(
      pcre2_match_data_create_from_pattern(code_->compiled, nullptr));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto match = [&](size_t from, uint32_t options) {
    return pcre2_match(code_->compiled, subject, text.size(), from, PCRE2_NO_UTF_CHECK | options, data.get(),
                       nullptr);
  };
  size_t done = 0;
  for (size_t from = 0; from < text.size();) {
    int found = match(from, 0);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(from, PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) throw std::runtime_error(fmt::format("pre-tokenizer: PCRE2 error {}", found));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    if (bounds[0] == bounds[1]) {
      if (bounds[0] >= text.size()) break;
      from = character_end(text, bounds[0]);
      continue;
    }
    if (bounds[0] > done) stretches.emplace_back(text.substr(done, bounds[0] - done), false);
    stretches.emplace_back(text.substr(bounds[0], bounds[1] - bounds[0]), true);
    done = from = bounds[1];
  }
  if (done < text.size()) stretches.emplace_back(text.substr(done), false);
  return stretches;
}

}  // namespace satune
