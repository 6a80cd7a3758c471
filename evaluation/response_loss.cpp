#include <ATen/core/Tensor.h>

#include "data/batches.h"
#include "evaluation/records.h"
#include "evaluation/task.h"

namespace satune {
namespace {

class ResponseLoss final : public Task {
 public:
  ResponseLoss(EvaluationRecords records, int64_t batch_size)
      : records_(std::move(records)), batch_size_(batch_size) {
    for (const EncodedSample& sample : records_.samples)
      lengths_.push_back(static_cast<int64_t>(sample.tokens.size()));
  }

  TaskSums run(Llama& model, int64_t share, int64_t shares) const override {
    TaskSums sums;
    if (share == 0) sums.over_length = records_.over_length;
    for (const std::vector<int64_t>& items : deal_batches(lengths_, share, shares, batch_size_)) {
      Batch batch;
      std::vector<int64_t> targets;
      for (const int64_t item : items) {
        const int64_t before = batch.target_count;
        append_document(batch, records_.samples[item].tokens, records_.samples[item].prompt_length);
        targets.push_back(batch.target_count - before);
      }
      const std::vector<double> losses = document_losses(model, batch);
      for (size_t i = 0; i < items.size(); ++i) sums.result.add(losses[i], static_cast<double>(targets[i]));
      sums.processed_tokens += static_cast<int64_t>(batch.tokens.size());
    }
    return sums;
  }

  Json metrics(const TaskSums& sums) const override {
    Json json;
    json["loss"] = sums.result.ratio();
    if (const auto error = sums.result.standard_error()) json["loss_stderr"] = *error;
    json["tokens"] = static_cast<int64_t>(sums.result.weight);
    json["over_length"] = sums.over_length;
    json["n"] = sums.result.items;
    return json;
  }

 private:
  EvaluationRecords records_;
  int64_t batch_size_;
  std::vector<int64_t> lengths_;
};

}  // namespace

std::unique_ptr<Task> make_response_loss(const std::filesystem::path& data, const TaskOptions& options,
                                         const Tokenizer& tokenizer, const PromptTemplate& prompt_template) {
  return std::make_unique<ResponseLoss>(read_evaluation_records(data, options, tokenizer, prompt_template),
                                        options.batch_size);
}

}  // namespace satune
