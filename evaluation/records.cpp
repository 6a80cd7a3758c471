#include "evaluation/records.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "data/files/error.h"
#include "evaluation/device_batch.h"

namespace satune {

EvaluationRecords read_evaluation_records(const std::filesystem::path& data, const TaskOptions& options,
                                          const Tokenizer& tokenizer, const PromptTemplate& prompt_template) {
  EvaluationRecords result;
  for (Record& record : read_alpaca(data, options.columns)) {
    if (options.max_records && static_cast<int64_t>(result.records.size()) >= *options.max_records) break;
    EncodedSample sample = prompt_template.encode(record, tokenizer);
    if (static_cast<int64_t>(sample.tokens.size()) > options.max_length) {
      ++result.over_length;
      continue;
    }
    result.samples.push_back(std::move(sample));
    result.records.push_back(std::move(record));
  }
  if (result.records.empty())
    throw bad_input(data.string(), fmt::format("{} records, all longer", result.over_length),
                    fmt::format("at least one of at most {} tokens (--max-length)", options.max_length));
  return result;
}

std::vector<std::vector<int64_t>> deal_batches(const std::vector<int64_t>& lengths,
                                               const std::vector<int64_t>& items,
                                               const TaskOptions& options) {
  std::vector<std::vector<int64_t>> batches;
  int64_t tokens = 0;
  for (const int64_t item : items) {
    const int64_t length = lengths[item];
    const bool full =
        !batches.empty() &&
        (options.batch_size > 0 ? static_cast<int64_t>(batches.back().size()) >= options.batch_size
                                : tokens + length > options.batch_tokens);
    if (batches.empty() || full) {
      batches.emplace_back();
      tokens = 0;
    }
    batches.back().push_back(item);
    tokens += length;
  }
  return batches;
}

int64_t sequences_together(const TaskOptions& options, int64_t capacity, int64_t items) {
  constexpr int64_t kMost = 32;  // rows that a product with a weight takes for little more than one
  const int64_t most = options.batch_size > 0
                           ? options.batch_size
                           : std::clamp(options.cache_tokens / capacity, int64_t{1}, kMost);
  return std::min(most, items);
}

void TaskFingerprint::add(std::span<const int32_t> tokens, int64_t first_target) {
  sha_.update_field(static_cast<uint64_t>(first_target));
  sha_.update_field({reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()});
}

std::vector<double> document_losses(Llama& model, const Batch& batch) {
  const at::Tensor losses_N =
      model.token_losses(to_device(batch, model.weights().device())).to(at::kCPU, at::kDouble).contiguous();
  const double* loss = losses_N.const_data_ptr<double>();
  std::vector<double> sums(batch.document_starts.size() - 1);
  for (size_t d = 0; d < sums.size(); ++d)
    for (int32_t i = batch.document_starts[d]; i < batch.document_starts[d + 1]; ++i) sums[d] += loss[i];
  // A number in a report has to be one.
  if (!std::all_of(sums.begin(), sums.end(), [](double sum) { return std::isfinite(sum); })) {
    throw std::runtime_error(
        "the model's loss is not finite: its weights or their products are infinite or NaN");
  }
  return sums;
}

}  // namespace satune
