#include "data/data_problems.h"

#include <utility>

namespace satune {

std::string_view problem_effect_name(ProblemEffect effect) {
  switch (effect) {
    case ProblemEffect::kStops:
      return "stops training";
    case ProblemEffect::kDropped:
      return "dropped";
    case ProblemEffect::kTrained:
      break;
  }
  return "trained";
}

const std::array<ProblemKindInfo, 20>& problem_kinds() {
  using enum ProblemKind;
  using enum ProblemEffect;
  static constexpr std::array<ProblemKindInfo, 20> kKinds = {{
      {kBrokenFile, "broken_file", "the file's brackets and commas", kStops},
      {kInvalidJson, "invalid_json", "not JSON, or a key twice", kStops},
      {kNotAnObject, "not_an_object", "not a JSON object", kStops},
      {kInvalidUtf8, "invalid_utf8", "bytes that are not UTF-8", kStops},
      {kMissingKey, "missing_key", "a key is missing", kStops},
      {kWrongType, "wrong_type", "a value that is not a string", kStops},
      {kPlainTextRecord, "plain_text_record", "plain text in a file of instructions", kStops},
      {kOverlengthError, "overlength_error", "longer than max_length, which is an error", kStops},
      {kEmptyOutput, "empty_output", "an empty output", kDropped},
      {kNothingToLearn, "nothing_to_learn", "no target", kDropped},
      {kOverlength, "overlength", "longer than max_length", kDropped},
      {kNoTargetLeft, "no_target_left", "cut to max_length, no target is left", kDropped},
      {kTruncated, "truncated", "cut to max_length: the end and its end-of-text token are not learned",
       kTrained},
      {kBlankOutput, "blank_output", "an output of white space only (dropped where the template trims)",
       kTrained},
      {kEmptyInstruction, "empty_instruction", "an empty instruction", kTrained},
      {kDuplicate, "duplicate", "the same as an earlier record", kTrained},
      {kConflictingOutput, "conflicting_output", "an earlier record's instruction and input, another output",
       kTrained},
      {kSpecialTokenText, "special_token_text",
       "text that looks like a special token (trained as plain text)", kTrained},
      {kTemplateText, "template_text", "text that looks like the template's own", kTrained},
      {kDamagedText, "damaged_text", "U+FFFD or control characters", kTrained},
  }};
  return kKinds;
}

void DataProblems::add(ProblemKind kind, Problem problem) {
  Kind& list = kinds_[static_cast<size_t>(kind)];
  ++list.count;
  if (list.kept.size() < listed_) list.kept.push_back(std::move(problem));
}

int64_t DataProblems::total() const {
  int64_t total = 0;
  for (const Kind& kind : kinds_) total += kind.count;
  return total;
}

}  // namespace satune
