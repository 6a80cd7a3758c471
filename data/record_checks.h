// What readable records say that training would take without a word: emptiness, repetition, look-alikes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "data/record_survey.h"

namespace satune {

/// The first stretch of `text` that looks like a special token of some model's ("<|eot_id|>", "</s>",
/// "[INST]"); empty where there is none.
std::string_view find_special_token_text(std::string_view text);

/// Adds to survey.problems, in file order. `template_texts`: what a prompt template puts before a response,
/// such as "### Response:".
void check_records(RecordSurvey& survey, const std::vector<std::string>& template_texts);

}  // namespace satune
