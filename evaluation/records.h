// The records a task works on: encoded, filtered by length, counted, and dealt out to shares and batches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/batch.h"
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

/// Cuts items [0, lengths.size()) of this share, in order, into forward passes: at most `batch_size` items
/// each, or with 0 as many as keep the pass at `automatic_tokens` tokens (always at least one).
std::vector<std::vector<int64_t>> deal_batches(const std::vector<int64_t>& lengths, int64_t share,
                                               int64_t shares, int64_t batch_size);

/// Tokens of a forward pass with --batch-size auto: enough to fill a CPU's caches and cores.
inline constexpr int64_t kAutomaticBatchTokens = 2048;

/// Sums of -log p per document of the batch, in fp64. Throws std::runtime_error when one is not finite.
std::vector<double> document_losses(Llama& model, const Batch& batch);

}  // namespace satune
