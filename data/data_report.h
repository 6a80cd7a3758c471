// What a training file gives a run: how many samples of which lengths under each template and tokenizer, what
// the length policy drops, what packing saves. The counts are those of Dataset and EpochPlan.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/batches.h"
#include "data/dataset.h"
#include "data/files/json.h"
#include "data/length_statistics.h"
#include "data/record_survey.h"

namespace satune {

/// One template under one tokenizer.
struct DataVariant {
  std::string model, template_name;  ///< template "" = plain text
  std::string unusable;  ///< why this tokenizer cannot serve this template; the rest is empty then
  DatasetSummary summary;
  int64_t dropped_no_target = 0;            ///< part of summary.dropped_overlength
  LengthStatistics lengths;                 ///< tokens of every record, before the length policy
  LengthStatistics target_lengths;          ///< targets of every record
  int64_t packed_rows = 0, plain_rows = 0;  ///< of the first epoch; plain: one sample each

  /// Part of rows of max_length tokens each that no token fills; 0 without rows.
  double padding(int64_t rows, int64_t max_length) const;
};

struct ExampleLines {
  std::string model, template_name;
  int64_t record = 0;
  std::vector<std::string> lines;  ///< preview_lines(), or the one line that says why it is not trained
};

struct DataReport {
  std::string file;
  RecordSurvey survey;
  LengthStatistics characters;  ///< code points of each record's texts together
  DatasetPolicy policy;
  uint64_t seed = 42;
  std::vector<DataVariant> variants;
  std::vector<ExampleLines> examples;
};

/// Code points of all texts of each readable record.
LengthStatistics character_statistics(const RecordSurvey& survey);

/// Encodes the readable records and applies policy and plan; what the policy cuts or drops is added to
/// survey.problems. `prompt_template` is nullptr for plain text. `label` tells variants apart in problems; ""
/// = there is one only.
DataVariant measure_variant(RecordSurvey& survey, const Tokenizer& tokenizer,
                            const PromptTemplate* prompt_template, const DatasetPolicy& policy, uint64_t seed,
                            int threads, const std::string& label);

/// The i-th readable record as it is trained (its first sample), token by token.
ExampleLines example_lines(const RecordSurvey& survey, size_t i, const Tokenizer& tokenizer,
                           const PromptTemplate* prompt_template, const DatasetPolicy& policy);

Json data_report_json(const DataReport& report);
/// For a terminal.
std::string data_report_text(const DataReport& report);

}  // namespace satune
