// A benchmark of the user's own, described by a JSON file (comments allowed). Keys:
//   data          file of questions (formats: data_rows.h), relative to the task file             required
//   prompt        template; {field} is replaced by that field of the row, {{ and }} are braces    required
//   description   text before the examples
//   examples      file that few-shot examples are drawn from
//   num_fewshot   number of examples (0); drawn as lm-eval draws them, or with
//   first_examples true: the first ones of the file
// choices by log-likelihood:
//   choices       array of templates, or the name of a field that holds an array of strings
//   answer        field with the index of the right choice or its text
//   metrics       of "acc", "acc_norm", "f1", "mcc" (["acc"]; the last two for two choices)
// or an answer that is generated:
//   target        template of the right answer
//   stop          strings that end the text
//   extract       regular expression; the first group of its match that is not empty is the answer, as in
//                 lm-eval, and without groups all that it matches; none: the whole text, trimmed
//   extract_last  true: its last match instead of the first
//   ignore        regular expressions removed from both answers before they are compared
//   ignore_case   true: ASCII letters of both cases are the same
//   max_new_tokens 256
//   metrics       ["exact_match"]
#pragma once

#include <filesystem>
#include <memory>

#include "evaluation/task.h"

namespace satune {

/// Throws BadInput that names the file and the key: unknown, missing, of another type, contradicting another.
/// `tokenizer` must outlive the task.
std::unique_ptr<Task> make_task_from_file(const std::filesystem::path& file, const TaskOptions& options,
                                          const Tokenizer& tokenizer);

}  // namespace satune
