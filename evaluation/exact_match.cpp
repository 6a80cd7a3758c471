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
        generation_{options.max_new_tokens, {}, options.stop_ids},
        max_positions_(options.max_positions) {}

  int64_t items() const override { return static_cast<int64_t>(records_.samples.size()); }

  void run(Llama& model, const std::vector<int64_t>& items, const ItemSink& done) const override {
    int64_t capacity = 0;
    for (const EncodedSample& sample : records_.samples)
      capacity = std::max<int64_t>(capacity, sample.prompt_length + answer_limit(sample.prompt_length));
    Decoder decoder(model, capacity);
    for (const int64_t i : items) {
      const auto prompt =
          std::span(records_.samples[i].tokens).first(static_cast<size_t>(records_.samples[i].prompt_length));
      const std::string target(trim_white_space(prompt_template_.response_text(records_.records[i])));
      decoder.clear();
      std::vector<int32_t> seen;
      GenerationOptions generation = generation_;
      generation.max_new_tokens = answer_limit(static_cast<int64_t>(prompt.size()));
      const Generation answer = generate(decoder, prompt, generation, [&](int32_t token) {
        seen.push_back(token);
        return can_still_match(seen, target);
      });
      const std::string text = tokenizer_.decode(answer.text_tokens(), true);
      const int equal = trim_white_space(text) == target ? 1 : 0;
      done({i,
            {{"exact_match", equal}, {"text", text}},
            static_cast<int64_t>(prompt.size() + answer.tokens.size())});
    }
  }

  Json metrics(const std::vector<Json>& results) const override {
    RatioSums sums;
    for (const Json& result : results) sums.add(result["exact_match"], 1.0);
    Json json;
    json["exact_match"] = sums.ratio();
    if (const auto error = sums.standard_error()) json["exact_match_stderr"] = *error;
    json["over_length"] = records_.over_length;
    json["n"] = sums.items;
    return json;
  }

  std::string fingerprint() const override {
    TaskFingerprint fingerprint("exact_match");
    for (const EncodedSample& sample : records_.samples) fingerprint.add(sample.tokens, sample.prompt_length);
    fingerprint.add(fmt::format("{} {} {}", generation_.max_new_tokens, max_positions_,
                                fmt::join(generation_.stop_ids, ",")));
    return fingerprint.hex();
  }

 private:
  /// Tokens of an answer to a prompt of `prompt` tokens. A record is no longer than the model's positions, so
  /// that they are enough for its target.
  int64_t answer_limit(int64_t prompt) const {
    return max_positions_ == 0 ? generation_.max_new_tokens
                               : std::min(generation_.max_new_tokens, max_positions_ - prompt);
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
  GenerationOptions generation_;
  int64_t max_positions_;
};

}  // namespace

std::unique_ptr<Task> make_exact_match(const std::filesystem::path& data, const TaskOptions& options,
                                       const Tokenizer& tokenizer, const PromptTemplate& prompt_template) {
  return std::make_unique<ExactMatch>(read_evaluation_records(data, options, tokenizer, prompt_template),
                                      options, tokenizer, prompt_template);
}

}  // namespace satune
