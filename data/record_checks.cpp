#include "data/record_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <unordered_map>
#include <utility>

#include "data/preview.h"
#include "data/tokenizers/code_points.h"
#include "data/utf8.h"

namespace satune {
namespace {

constexpr std::array<std::string_view, 12> kKnownTokens = {"<s>",     "</s>",    "<unk>",    "<pad>",
                                                           "<bos>",   "<eos>",   "<mask>",   "[INST]",
                                                           "[/INST]", "<<SYS>>", "<</SYS>>", "<0x0A>"};
constexpr size_t kLongestName = 48;  // of "<|...|>"

bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/// "<|name|>" at the beginning of `text`; 0 = none.
size_t bar_token(std::string_view text) {
  if (!text.starts_with("<|")) return 0;
  size_t end = 2;
  while (end < text.size() && end < kLongestName && is_name(text[end])) ++end;
  return end > 2 && text.substr(end).starts_with("|>") ? end + 2 : 0;
}

/// U+FFFD (unless we have put it there), or a control character other than tab and line ends.
std::optional<std::string> find_damage(std::string_view text, bool replaced) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool control = (byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r') || byte == 0x7F;
    if (control) return fmt::format("U+{:04X}", byte);
    if (!replaced && byte == 0xEF && text.substr(i).starts_with("\xEF\xBF\xBD")) return "U+FFFD";
  }
  return std::nullopt;
}

using Texts = std::array<std::string_view, 3>;

struct TextsHash {
  size_t operator()(const Texts& texts) const {
    size_t hash = 0;
    for (const std::string_view text : texts)
      hash = hash * 0x9E3779B97F4A7C15ULL + std::hash<std::string_view>()(text);
    return hash;
  }
};

class Checks {
 public:
  Checks(RecordSurvey& survey, const std::vector<std::string>& template_texts)
      : survey_(survey), template_texts_(template_texts) {}

  void check(const Record& record, size_t line) {
    here_ = {record.number, line, {}};
    if (trim_white_space(record.instruction).empty()) add(ProblemKind::kEmptyInstruction, "");
    if (record.output.empty()) {
      add(ProblemKind::kEmptyOutput, "");
    } else if (trim_white_space(record.output).empty()) {
      add(ProblemKind::kBlankOutput, quote_text(record.output));
    }
    look("instruction", record.instruction);
    look("input", record.input);
    look("output", record.output);
    repetition(record);
  }

  void check(const TextDocument& document, size_t line) {
    here_ = {document.number, line, {}};
    if (document.text.empty()) add(ProblemKind::kNothingToLearn, "an empty text");
    look("text", document.text);
    if (!document.text.empty()) same_as_earlier({document.text, {}, {}});
  }

 private:
  void add(ProblemKind kind, std::string text) {
    survey_.problems.add(kind, {here_.record, here_.line, std::move(text)});
  }

  void look(std::string_view key, std::string_view text) {
    if (const std::string_view token = find_special_token_text(text); !token.empty())
      add(ProblemKind::kSpecialTokenText, fmt::format("{} in \"{}\"", quote_text(token), key));
    for (const std::string& marker : template_texts_) {
      if (text.find(marker) == std::string_view::npos) continue;
      add(ProblemKind::kTemplateText, fmt::format("{} in \"{}\"", quote_text(marker), key));
      break;
    }
    if (const auto damage = find_damage(text, survey_.replaced))
      add(ProblemKind::kDamagedText, fmt::format("{} in \"{}\"", *damage, key));
  }

  bool same_as_earlier(const Texts& texts) {
    const auto [earlier, is_new] = records_.try_emplace(texts, here_.record);
    if (!is_new) add(ProblemKind::kDuplicate, fmt::format("the same as record {}", earlier->second));
    return !is_new;
  }

  void repetition(const Record& record) {
    const auto [earlier, is_new] =
        questions_.try_emplace(Texts{record.instruction, record.input, {}}, here_.record);
    if (!same_as_earlier({record.instruction, record.input, record.output}) && !is_new) {
      add(ProblemKind::kConflictingOutput,
          fmt::format("the instruction and input of record {}", earlier->second));
    }
  }

  RecordSurvey& survey_;
  const std::vector<std::string>& template_texts_;
  Problem here_;
  std::unordered_map<Texts, size_t, TextsHash> records_, questions_;  ///< to the first record that says it
};

}  // namespace

std::string_view find_special_token_text(std::string_view text) {
  for (size_t i = text.find_first_of("<["); i != std::string_view::npos;
       i = text.find_first_of("<[", i + 1)) {
    const std::string_view rest = text.substr(i);
    if (const size_t length = bar_token(rest)) return rest.substr(0, length);
    for (const std::string_view token : kKnownTokens)
      if (rest.starts_with(token)) return rest.substr(0, token.size());
  }
  return {};
}

void check_records(RecordSurvey& survey, const std::vector<std::string>& template_texts) {
  Checks checks(survey, template_texts);
  for (size_t i = 0; i < survey.instructions.size(); ++i)
    checks.check(survey.instructions[i], survey.lines[i]);
  for (size_t i = 0; i < survey.documents.size(); ++i) checks.check(survey.documents[i], survey.lines[i]);
}

}  // namespace satune
