#include <ATen/core/Tensor.h>

#include "data/batches.h"
#include "evaluation/records.h"
#include "evaluation/sums.h"
#include "evaluation/task.h"

namespace satune {
namespace {

class ResponseLoss final : public Task {
 public:
  ResponseLoss(EvaluationRecords records, const TaskOptions& options)
      : records_(std::move(records)), options_(options) {
    for (const EncodedSample& sample : records_.samples)
      lengths_.push_back(static_cast<int64_t>(sample.tokens.size()));
  }

  int64_t items() const override { return static_cast<int64_t>(records_.samples.size()); }

  void run(Llama& model, const std::vector<int64_t>& wanted, const ItemSink& done) const override {
    for (const std::vector<int64_t>& items : deal_batches(lengths_, wanted, options_)) {
      Batch batch;
      std::vector<int64_t> targets;
      for (const int64_t item : items) {
        const int64_t before = batch.target_count;
        append_document(batch, records_.samples[item].tokens, records_.samples[item].prompt_length);
        targets.push_back(batch.target_count - before);
      }
      const std::vector<double> losses = document_losses(model, batch);
      for (size_t i = 0; i < items.size(); ++i)
        done({items[i], {{"loss", losses[i]}, {"tokens", targets[i]}}, lengths_[items[i]]});
    }
  }

  Json metrics(const std::vector<Json>& results) const override {
    RatioSums sums;
    for (const Json& result : results) sums.add(result["loss"], result["tokens"]);
    Json json;
    add_metric(json, "loss", sums);
    json["tokens"] = static_cast<int64_t>(sums.weight);
    json["over_length"] = records_.over_length;
    json["n"] = sums.items;
    return json;
  }

  Json result_form(int64_t /*item*/) const override { return {{"loss", 0}, {"tokens", 0}}; }

  std::string fingerprint() const override {
    TaskFingerprint fingerprint("response_loss");
    for (const EncodedSample& sample : records_.samples) fingerprint.add(sample.tokens, sample.prompt_length);
    return fingerprint.hex();
  }

 private:
  EvaluationRecords records_;
  TaskOptions options_;
  std::vector<int64_t> lengths_;
};

}  // namespace

std::unique_ptr<Task> make_response_loss(const std::filesystem::path& data, const TaskOptions& options,
                                         const Tokenizer& tokenizer, const PromptTemplate& prompt_template) {
  return std::make_unique<ResponseLoss>(read_evaluation_records(data, options, tokenizer, prompt_template),
                                        options);
}

}  // namespace satune
