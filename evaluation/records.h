// The records a task works on: encoded, filtered by length, counted, and dealt out to shares and batches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/batch.h"
#include "data/fingerprint.h"
#include "evaluation/task.h"

namespace satune {

struct EvaluationRecords {
  std::vector<Record> records;         ///< that fit, in file order, at most max_records
  std::vector<EncodedSample> samples;  ///< of the same records: prompt and response
  int64_t over_length = 0;             ///< left out before max_records was reached
};

/// Reads Alpaca JSON or JSONL. Throws BadInput as the reader does, and when no record fits in max_length.
EvaluationRecords read_evaluation_records(const std::filesystem::path& data, const TaskOptions& options,
                                          const Tokenizer& tokenizer, const PromptTemplate& prompt_template);

/// Cuts `items`, in order, into forward passes: at most options.batch_size items each, or with 0 as many as
/// keep the pass at options.batch_tokens tokens (always at least one).
std::vector<std::vector<int64_t>> deal_batches(const std::vector<int64_t>& lengths,
                                               const std::vector<int64_t>& items, const TaskOptions& options);

/// How many of `items` answers are generated together, with up to `capacity` tokens in the cache of each:
/// options.batch_size, or with 0 as many as keep the caches at options.cache_tokens tokens, at most 32.
int64_t sequences_together(const TaskOptions& options, int64_t capacity, int64_t items);

/// SHA-256 over what makes a task of token sequences: its name, the sequences, where their targets begin.
class TaskFingerprint {
 public:
  explicit TaskFingerprint(std::string_view task) { sha_.update_field(task); }
  void add(std::span<const int32_t> tokens, int64_t first_target);
  void add(std::string_view text) { sha_.update_field(text); }
  std::string hex() { return sha_.hex(); }

 private:
  Sha256 sha_;
};

/// Sums of -log p per document of the batch, in fp64. Throws std::runtime_error when one is not finite.
std::vector<double> document_losses(Llama& model, const Batch& batch);

}  // namespace satune
