#include "evaluation/regex.h"

#include <fmt/format.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdexcept>

#include "data/files/error.h"

namespace satune {
namespace {

struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

struct Regex::Code {
  pcre2_code* compiled = nullptr;
  ~Code() { pcre2_code_free(compiled); }
};

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

Regex::Regex(std::string_view pattern, const std::string& where)
    : pattern_(pattern), code_(std::make_unique<Code>()) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  code_->compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  if (code_->compiled != nullptr) return;
  PCRE2_UCHAR message[256];
  pcre2_get_error_message(error, message, sizeof(message));
  throw bad_input(where,
                  fmt::format("\"{}\" ({} at {})", pattern, reinterpret_cast<const char*>(message), offset),
                  "a regular expression");
}

std::vector<Regex::Match> Regex::matches(std::string_view text) const {
  std::vector<Match> found;
  const std::unique_ptr<pcre2_match_data, MatchDataDeleter> data(
      pcre2_match_data_create_from_pattern(code_->compiled, nullptr));
  size_t from = 0;
  while (from <= text.size()) {
    const int count = pcre2_match(code_->compiled, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                  from, PCRE2_NO_UTF_CHECK, data.get(), nullptr);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count == PCRE2_ERROR_MATCHLIMIT || count == PCRE2_ERROR_DEPTHLIMIT || count == PCRE2_ERROR_HEAPLIMIT)
      throw MatchLimit("the regular expression " + pattern_);
    if (count < 0) throw std::runtime_error(fmt::format("regular expression: PCRE2 error {}", count));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    Match match{bounds[0], bounds[1], {}};
    const uint32_t groups = pcre2_get_ovector_count(data.get());
    for (uint32_t g = groups > 1 ? 1 : 0; g < groups; ++g) {
      const bool set = bounds[2 * g] != PCRE2_UNSET;
      match.groups.emplace_back(set ? text.substr(bounds[2 * g], bounds[2 * g + 1] - bounds[2 * g]) : "");
    }
    from = match.end;
    if (match.end == match.begin) do
        ++from;
      while (from < text.size() && (text[from] & 0xC0) == 0x80);
    found.push_back(std::move(match));
  }
  return found;
}

std::vector<std::vector<std::string>> Regex::find_all(std::string_view text) const {
  std::vector<std::vector<std::string>> groups;
  for (Match& match : matches(text)) groups.push_back(std::move(match.groups));
  return groups;
}

std::string Regex::remove_all(std::string_view text) const {
  std::string out;
  size_t done = 0;
  for (const Match& match : matches(text)) {
    out += text.substr(done, match.begin - done);
    done = match.end;
  }
  return out + std::string(text.substr(done));
}

}  // namespace satune
