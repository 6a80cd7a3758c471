// From official files to documents, a function for each benchmark. All throw BadInput that names file, line
// and field.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/benchmark.h"
#include "evaluation/data_rows.h"

namespace satune {

/// MMLU's subjects that are not among the groups.
std::vector<std::string> missing_mmlu_subjects(const std::vector<DocumentGroup>& groups);

/// As Python's str.replace().
std::string replace_all(std::string text, std::string_view from, std::string_view to);

/// `text` with each {field} replaced by that field of the row ("{{" and "}}" stand for braces). Numbers as
/// JSON writes them. Throws BadInput for a field that is missing or holds something else, and naming `where`
/// for a brace that is not closed.
std::string fill_template(std::string_view text, const DataRow& row,
                          std::string_view where = "a prompt template");

std::vector<BenchmarkDocument> read_hellaswag(const std::filesystem::path& file);
std::vector<BenchmarkDocument> read_gsm8k(const std::filesystem::path& file);
/// `task` is lm-eval's name: "sst2", "mnli_mismatch", ...
std::vector<BenchmarkDocument> read_glue(std::string_view task, const std::filesystem::path& file);

/// The folder with test/*_test.csv and dev/*_dev.csv, or a JSONL of the hub's with `subject` in each row (its
/// dev split beside it). Subjects in lm-eval's order, without their examples unless `with_examples`.
std::vector<DocumentGroup> read_mmlu(const std::filesystem::path& data, bool with_examples);

}  // namespace satune
