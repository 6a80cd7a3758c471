#include "data/data_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "data/encode_records.h"
#include "data/files/error.h"
#include "data/preview.h"

namespace satune {
namespace {

constexpr int64_t kExampleTokens = 96;  // the middle of a longer example is left out

int64_t code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::vector<EncodedRecord> encode(const RecordSurvey& survey, const Tokenizer& tokenizer,
                                  const PromptTemplate* prompt_template, int threads) {
  return prompt_template ? encode_records(survey.instructions, tokenizer, *prompt_template, threads)
                         : encode_documents(survey.documents, tokenizer, threads);
}

size_t record_number(const RecordSurvey& survey, size_t i) {
  return survey.format == DataFormat::kText ? survey.documents[i].number : survey.instructions[i].number;
}

RecordLength length_of(const EncodedRecord& record) {
  return {static_cast<int64_t>(record.sample.tokens.size()), record.sample.prompt_length,
          record.empty_output};
}

int64_t target_count(int64_t tokens, int64_t prompt_tokens) {
  return std::max<int64_t>(0, tokens - std::max<int64_t>(prompt_tokens, 1));
}

class Measure {
 public:
  Measure(RecordSurvey& survey, const DatasetPolicy& policy, const std::string& label)
      : survey_(survey), policy_(policy), label_(label) {}

  void add(size_t i, const RecordLength& length) {
    DatasetSummary& summary = variant_.summary;
    ++summary.records;
    lengths_.push_back(length.tokens);
    targets_.push_back(target_count(length.tokens, length.prompt_tokens));
    const RecordFate fate = record_fate(length, survey_.format, policy_);
    report(i, length, fate);
    for (const TokenRange& range : sample_ranges(length.tokens, fate, policy_.max_length)) {
      const int64_t tokens = range.end - range.begin;
      samples_.push_back(tokens);
      summary.tokens += tokens;
      summary.target_tokens += target_count(tokens, length.prompt_tokens);
      summary.longest = std::max(summary.longest, tokens);
    }
  }

  DataVariant finish(uint64_t seed) {
    variant_.summary.kept = static_cast<int64_t>(samples_.size());
    variant_.lengths = length_statistics(std::move(lengths_));
    variant_.target_lengths = length_statistics(std::move(targets_));
    variant_.plain_rows = variant_.summary.kept;
    const PlanOptions plan{.max_length = policy_.max_length, .packing = true, .shuffle = true, .seed = seed};
    variant_.packed_rows = EpochPlan(samples_, plan, 0).rows();
    return std::move(variant_);
  }

 private:
  void problem(ProblemKind kind, size_t i, std::string text) {
    if (!label_.empty()) text += fmt::format(" ({})", label_);
    survey_.problems.add(kind, {record_number(survey_, i), survey_.lines[i], std::move(text)});
  }

  void report(size_t i, const RecordLength& length, RecordFate fate) {
    DatasetSummary& summary = variant_.summary;
    const std::string tokens = fmt::format("{} tokens", length.tokens);
    switch (fate) {
      case RecordFate::kKept:
      case RecordFate::kPieces:
        break;
      case RecordFate::kNothingToLearn:
        ++summary.dropped_empty;
        if (!length.empty_output) problem(ProblemKind::kNothingToLearn, i, tokens);
        break;
      case RecordFate::kTooLong:
        ++summary.dropped_overlength;
        problem(policy_.overlength == Overlength::kError ? ProblemKind::kOverlengthError
                                                         : ProblemKind::kOverlength,
                i, tokens);
        break;
      case RecordFate::kNoTargetLeft:
        ++summary.dropped_overlength;
        ++variant_.dropped_no_target;
        problem(ProblemKind::kNoTargetLeft, i,
                fmt::format("{}, {} of them the prompt", tokens, length.prompt_tokens));
        break;
      case RecordFate::kTruncated:
        ++summary.truncated;
        problem(ProblemKind::kTruncated, i, tokens);
        break;
    }
  }

  RecordSurvey& survey_;
  const DatasetPolicy& policy_;
  const std::string& label_;
  DataVariant variant_;
  std::vector<int64_t> lengths_, targets_;  // of records
  std::vector<int64_t> samples_;            // tokens of each sample that is kept
};

std::string why_not_trained(const RecordLength& length, RecordFate fate, const DatasetPolicy& policy) {
  if (fate == RecordFate::kNothingToLearn) return "not trained: nothing to learn";
  return fmt::format("not trained: {} tokens, {} of them the prompt, at most {} (overlength \"{}\")",
                     length.tokens, length.prompt_tokens, policy.max_length,
                     overlength_name(policy.overlength));
}

}  // namespace

double DataVariant::padding(int64_t rows, int64_t max_length) const {
  if (rows == 0) return 0;
  return 1 -
         static_cast<double>(summary.tokens) / (static_cast<double>(rows) * static_cast<double>(max_length));
}

LengthStatistics character_statistics(const RecordSurvey& survey) {
  std::vector<int64_t> lengths;
  for (const Record& record : survey.instructions)
    lengths.push_back(code_points(record.instruction) + code_points(record.input) +
                      code_points(record.output));
  for (const TextDocument& document : survey.documents) lengths.push_back(code_points(document.text));
  return length_statistics(std::move(lengths));
}

DataVariant measure_variant(RecordSurvey& survey, const Tokenizer& tokenizer,
                            const PromptTemplate* prompt_template, const DatasetPolicy& policy, uint64_t seed,
                            int threads, const std::string& label) {
  Measure measure(survey, policy, label);
  const std::vector<EncodedRecord> encoded = encode(survey, tokenizer, prompt_template, threads);
  for (size_t i = 0; i < encoded.size(); ++i) measure.add(i, length_of(encoded[i]));
  return measure.finish(seed);
}

ExampleLines example_lines(const RecordSurvey& survey, size_t i, const Tokenizer& tokenizer,
                           const PromptTemplate* prompt_template, const DatasetPolicy& policy) {
  EncodedRecord encoded;
  if (prompt_template) {
    const Record& record = survey.instructions[i];
    encoded = {prompt_template->encode(record, tokenizer), prompt_template->response_text(record).empty()};
  } else {
    const std::string& text = survey.documents[i].text;
    encoded = {encode_document(text, tokenizer), text.empty()};
  }
  ExampleLines example;
  example.record = static_cast<int64_t>(record_number(survey, i));
  const RecordLength length = length_of(encoded);
  const RecordFate fate = record_fate(length, survey.format, policy);
  const std::vector<TokenRange> ranges = sample_ranges(length.tokens, fate, policy.max_length);
  if (ranges.empty()) {
    example.lines = {why_not_trained(length, fate, policy)};
    return example;
  }
  Batch batch;
  append_document(batch, std::span(encoded.sample.tokens).first(static_cast<size_t>(ranges.front().end)),
                  encoded.sample.prompt_length);
  example.lines = preview_lines(batch, 0, tokenizer, kExampleTokens);
  return example;
}

}  // namespace satune
