// Tasks whose answer the model writes: greedy text up to a stop string, an answer taken out of it by a
// regular expression, and whether that is the right one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/benchmark.h"
#include "evaluation/regex.h"

namespace satune {

/// How an answer is found in a text: the match of `pattern` (its first group that is not empty; without
/// groups the whole match), without white space around it. No match is the answer "[invalid]", as in lm-eval.
struct AnswerExtraction {
  std::string metric;                              ///< "exact_match"
  std::shared_ptr<const Regex> pattern = nullptr;  ///< nullptr = the whole text, trimmed
  bool last = false;                               ///< the last match instead of the first
};

struct AnswerRules {
  std::vector<AnswerExtraction> extractions;          ///< each is a metric of its own
  std::vector<std::string> stop;                      ///< the text ends before any of them
  std::vector<std::shared_ptr<const Regex>> ignored;  ///< removed from both answers, in this order
  bool ignore_case = false;                           ///< of ASCII letters
  int64_t max_new_tokens = 256;
};

/// lm-eval's for gsm8k: exact_match is its strict-match, exact_match_flexible its flexible-extract.
AnswerRules gsm8k_answers();

/// The extraction's answer out of the text of a model.
std::string extract_answer(const AnswerExtraction& extraction, std::string_view text);
/// Whether the two answers are the same under the rules.
bool same_answer(const AnswerRules& rules, std::string_view answer, std::string_view target);

/// Metrics: each extraction's share of right answers and its _stderr; match_limit, where there were any, the
/// number of answers that a regular expression could not be done with (MatchLimit), which count as wrong; n.
/// A prompt that leaves no room for max_new_tokens loses tokens at its beginning, as in lm-eval. Results:
/// {"text", "target", METRIC: 0 or 1, "match_limit": true where it was met}. Throws BadInput when the model
/// has no more positions than max_new_tokens.
std::unique_ptr<Task> make_answer_task(std::string_view name, DocumentGroup group, AnswerRules rules,
                                       int64_t default_shots, const TaskOptions& options,
                                       const Tokenizer& tokenizer);

}  // namespace satune
