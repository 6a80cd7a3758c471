#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "data/files/error.h"
#include "data/records.h"
#include "evaluation/perplexity_windows.h"
#include "evaluation/records.h"
#include "evaluation/sums.h"
#include "evaluation/task.h"

namespace satune {
namespace {

struct DocumentWindow {
  size_t document;
  PerplexityWindow window;
};

class Perplexity final : public Task {
 public:
  Perplexity(std::vector<std::vector<int32_t>> documents, const TaskOptions& options)
      : documents_(std::move(documents)), options_(options) {
    const int64_t stride = options.stride > 0 ? options.stride : options.max_length;
    for (size_t d = 0; d < documents_.size(); ++d)
      for (const PerplexityWindow& window :
           perplexity_windows(static_cast<int64_t>(documents_[d].size()), options.max_length, stride)) {
        windows_.push_back({d, window});
        lengths_.push_back(window.end - window.begin);
      }
  }

  bool empty() const { return windows_.empty(); }

  int64_t items() const override { return static_cast<int64_t>(windows_.size()); }

  void run(Llama& model, const std::vector<int64_t>& wanted, const ItemSink& done) const override {
    for (const std::vector<int64_t>& items : deal_batches(lengths_, wanted, options_)) {
      Batch batch;
      batch.document_starts = {0};
      for (const int64_t item : items) append_window(batch, windows_[item]);
      const std::vector<double> losses = document_losses(model, batch);
      for (size_t i = 0; i < items.size(); ++i) {
        const PerplexityWindow& window = windows_[items[i]].window;
        done({items[i],
              {{"loss", losses[i]}, {"tokens", window.end - window.first_counted}},
              lengths_[items[i]]});
      }
    }
  }

  Json metrics(const std::vector<Json>& results) const override {
    RatioSums sums;
    for (const Json& result : results) sums.add(result["loss"], result["tokens"]);
    const double perplexity = std::exp(sums.ratio());
    std::optional<double> error = sums.standard_error();
    if (error) *error *= perplexity;  // d exp(loss) = exp(loss) d loss
    Json json;
    add_metric(json, "perplexity", perplexity, error);
    add_metric(json, "loss", sums);
    json["tokens"] = static_cast<int64_t>(sums.weight);
    json["n"] = sums.items;
    return json;
  }

  Json result_form(int64_t /*item*/) const override { return {{"loss", 0}, {"tokens", 0}}; }

  std::string fingerprint() const override {
    TaskFingerprint fingerprint("perplexity");
    for (const DocumentWindow& item : windows_) {
      const auto begin = static_cast<size_t>(item.window.begin), end = static_cast<size_t>(item.window.end);
      fingerprint.add(std::span(documents_[item.document]).subspan(begin, end + 1 - begin),
                      item.window.first_counted - item.window.begin);
    }
    return fingerprint.hex();
  }

 private:
  void append_window(Batch& batch, const DocumentWindow& item) const {
    const std::vector<int32_t>& tokens = documents_[item.document];
    for (int64_t i = item.window.begin; i < item.window.end; ++i) {
      const bool counted = i >= item.window.first_counted;
      batch.tokens.push_back(tokens[i]);
      batch.targets.push_back(counted ? tokens[i + 1] : kIgnoreTarget);
      batch.positions.push_back(static_cast<int32_t>(i - item.window.begin));
      batch.target_count += counted;
    }
    batch.document_starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }

  std::vector<std::vector<int32_t>> documents_;
  std::vector<DocumentWindow> windows_;
  std::vector<int64_t> lengths_;
  TaskOptions options_;
};

}  // namespace

std::unique_ptr<Task> make_perplexity(const std::filesystem::path& data, const TaskOptions& options,
                                      const Tokenizer& tokenizer) {
  if (options.stride > options.max_length)
    throw bad_input("--stride", fmt::format("{}", options.stride),
                    fmt::format("at most {}, the --max-length", options.max_length));
  std::vector<std::vector<int32_t>> documents;
  for (const TextDocument& document : read_plain_text(data, options.columns)) {
    if (options.max_records && static_cast<int64_t>(documents.size()) >= *options.max_records) break;
    documents.push_back(encode_raw_prompt(document.text, tokenizer));
  }
  auto task = std::make_unique<Perplexity>(std::move(documents), options);
  if (task->empty()) throw bad_input(data.string(), "no token to predict", "a text of at least two tokens");
  return task;
}

}  // namespace satune
