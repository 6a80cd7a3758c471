#include <algorithm>

#include "data/utf8.h"
#include "evaluation/generation.h"
#include "evaluation/records.h"
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
        generation_{options.max_new_tokens, {}, options.stop_ids} {}

  TaskSums run(Llama& model, int64_t share, int64_t shares) const override {
    TaskSums sums;
    if (share == 0) sums.over_length = records_.over_length;
    int64_t longest = 0;
    for (const EncodedSample& sample : records_.samples)
      longest = std::max<int64_t>(longest, sample.prompt_length);
    Decoder decoder(model, longest + generation_.max_new_tokens);
    for (int64_t i = share; i < static_cast<int64_t>(records_.records.size()); i += shares) {
      const auto prompt =
          std::span(records_.samples[i].tokens).first(static_cast<size_t>(records_.samples[i].prompt_length));
      const std::string target(trim_white_space(prompt_template_.response_text(records_.records[i])));
      decoder.clear();
      std::vector<int32_t> seen;
      const Generation answer = generate(decoder, prompt, generation_, [&](int32_t token) {
        seen.push_back(token);
        return can_still_match(seen, target);
      });
      const std::string text = tokenizer_.decode(answer.text_tokens(), true);
      const bool equal = trim_white_space(text) == target;
      sums.result.add(equal ? 1.0 : 0.0, 1.0);
      sums.processed_tokens += static_cast<int64_t>(prompt.size() + answer.tokens.size());
    }
    return sums;
  }

  Json metrics(const TaskSums& sums) const override {
    Json json;
    json["exact_match"] = sums.result.ratio();
    if (const auto error = sums.result.standard_error()) json["exact_match_stderr"] = *error;
    json["over_length"] = sums.over_length;
    json["n"] = sums.result.items;
    return json;
  }

 private:
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
};

}  // namespace

std::unique_ptr<Task> make_exact_match(const std::filesystem::path& data, const TaskOptions& options,
                                       const Tokenizer& tokenizer, const PromptTemplate& prompt_template) {
  return std::make_unique<ExactMatch>(read_evaluation_records(data, options, tokenizer, prompt_template),
                                      options, tokenizer, prompt_template);
}

}  // namespace satune
