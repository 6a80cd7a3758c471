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
      decoder.clear();
      const Generation answer = generate(decoder, prompt, generation_);
      const std::string text = tokenizer_.decode(answer.text_tokens(), true);
      const bool equal =
          trim_white_space(text) == trim_white_space(prompt_template_.response_text(records_.records[i]));
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
