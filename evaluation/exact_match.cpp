#include <fmt/ranges.h>

#include <algorithm>

#include "data/utf8.h"
#include "evaluation/generation.h"
#include "evaluation/records.h"
#include "evaluation/sums.h"
#include "evaluation/task.h"

namespace satune {
namespace {

class ExactMatch final : public Task {
 public:
  ExactMatch(EvaluationRecords records, const TaskOptions& options, const Tokenizer& tokenizer,
             const PromptTemplate& prompt_template)
      : records_(std::move(records)),
        tokenizer_(tokenizer),
        prompt_template_(prompt_template),
        options_(options) {}

  int64_t items() const override { return static_cast<int64_t>(records_.samples.size()); }

  void run(Llama& model, const std::vector<int64_t>& items, const ItemSink& done) const override {
    if (items.empty()) return;
    std::vector<std::span<const int32_t>> prompts;
    std::vector<std::string> targets;
    int64_t longest_prompt = 0, longest_answer = 0;
    for (const int64_t item : items) {
      prompts.push_back(prompt(item));
      const auto length = static_cast<int64_t>(prompts.back().size());
      longest_prompt = std::max(longest_prompt, length);
      longest_answer = std::max(longest_answer, answer_limit(length));
      targets.emplace_back(trim_white_space(prompt_template_.response_text(records_.records[item])));
    }
    const int64_t capacity = longest_prompt + longest_answer;
    Decoder decoder(model, capacity,
                    sequences_together(options_, capacity, static_cast<int64_t>(items.size())));
    std::vector<std::vector<int32_t>> seen(items.size());
    const auto goes_on = [&](size_t i, int32_t token) {
      seen[i].push_back(token);
      return static_cast<int64_t>(seen[i].size()) < answer_limit(static_cast<int64_t>(prompts[i].size())) &&
             can_still_match(seen[i], targets[i]);
    };
    generate_together(decoder, prompts, {longest_answer, {}, options_.stop_ids}, goes_on,
                      [&](size_t i, const Generation& answer) {
                        const std::string text = tokenizer_.decode(seen[i], true);
                        done({items[i],
                              {{"exact_match", trim_white_space(text) == targets[i] ? 1 : 0}, {"text", text}},
                              static_cast<int64_t>(prompts[i].size() + answer.tokens.size())});
                      });
  }

  Json metrics(const std::vector<Json>& results) const override {
    Json json;
    add_mean(json, "exact_match", results);
    json["over_length"] = records_.over_length;
    json["n"] = results.size();
    return json;
  }

  Json result_form(int64_t /*item*/) const override { return {{"exact_match", 0}}; }

  std::string fingerprint() const override {
    TaskFingerprint fingerprint("exact_match");
    for (const EncodedSample& sample : records_.samples) fingerprint.add(sample.tokens, sample.prompt_length);
    fingerprint.add(fmt::format("{}", options_.max_new_tokens));
    return fingerprint.hex();
  }

 private:
  std::span<const int32_t> prompt(int64_t item) const {
    const EncodedSample& sample = records_.samples[item];
    return std::span(sample.tokens).first(static_cast<size_t>(sample.prompt_length));
  }

  /// Tokens of an answer to a prompt of `prompt` tokens. A record is no longer than the model's positions, so
  /// that they are enough for its target.
  int64_t answer_limit(int64_t prompt) const {
    return options_.max_positions == 0 ? options_.max_new_tokens
                                       : std::min(options_.max_new_tokens, options_.max_positions - prompt);
  }

  /// Text only grows, so an answer longer than its target is wrong whatever comes. Bytes of an unfinished
  /// character count three each until it is complete, hence the margin.
  bool can_still_match(const std::vector<int32_t>& tokens, const std::string& target) const {
    constexpr size_t kMargin = 16;
    return trim_white_space(tokenizer_.decode(tokens, true)).size() <= target.size() + kMargin;
  }

  EvaluationRecords records_;
  const Tokenizer& tokenizer_;
  const PromptTemplate& prompt_template_;
  TaskOptions options_;
};

}  // namespace

std::unique_ptr<Task> make_exact_match(const std::filesystem::path& data, const TaskOptions& options,
                                       const Tokenizer& tokenizer, const PromptTemplate& prompt_template) {
  return std::make_unique<ExactMatch>(read_evaluation_records(data, options, tokenizer, prompt_template),
                                      options, tokenizer, prompt_template);
}

}  // namespace satune
