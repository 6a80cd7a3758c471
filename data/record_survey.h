// A data file read to its end whatever is wrong with it: what training would read, and every problem.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "data/data_problems.h"
#include "data/records.h"

namespace satune {

struct RecordSurvey {
  DataFormat format = DataFormat::kAlpaca;
  std::string container;  ///< "JSON array", "JSONL" or "text file"
  uint64_t bytes = 0;
  int64_t records = 0;  ///< that were found, readable or not
  /// The readable ones: of kAlpaca `instructions`, of kText `documents`; `lines[i]` is where the i-th begins.
  std::vector<Record> instructions;
  std::vector<TextDocument> documents;
  std::vector<size_t> lines;
  std::map<std::string, int64_t> ignored_keys;  ///< keys that no column reads, and in how many records
  DataProblems problems;
  bool replaced = false;  ///< every U+FFFD in the texts is ours, for bytes that are not UTF-8
  std::string unread;     ///< from where on the file was not read, and why; "" = it was read to its end

  int64_t readable() const { return static_cast<int64_t>(lines.size()); }
};

/// Readable instruction records that have an input.
int64_t records_with_input(const RecordSurvey& survey);

/// Training stops at the first record that it cannot read; this goes on, lists each with its number, and
/// keeps the first `listed` of every kind. The format is that of the first object. What records say is not
/// judged here: see check_records(). Throws BadInput where no JSON object can be read at all.
RecordSurvey survey_records(const std::filesystem::path& path, const ColumnNames& columns, size_t listed);

}  // namespace satune
