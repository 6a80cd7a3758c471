#include "evaluation/generated_answer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "data/files/error.h"
#include "data/utf8.h"
#include "evaluation/generation.h"
#include "evaluation/records.h"
#include "evaluation/sums.h"

namespace satune {
namespace {

std::shared_ptr<const Regex> built_in(std::string_view pattern) {
  return std::make_shared<const Regex>(pattern, "gsm8k");
}

std::string normalised(const AnswerRules& rules, std::string_view answer) {
  std::string text(answer);
  for (const auto& pattern : rules.ignored) text = pattern->remove_all(text);
  if (rules.ignore_case)
    for (char& c : text)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return text;
}

class AnswerTask final : public Task {
 public:
  AnswerTask(std::string name, const DocumentGroup& group, AnswerRules rules, int64_t default_shots,
             const TaskOptions& options, const Tokenizer& tokenizer)
      : name_(std::move(name)), rules_(std::move(rules)), options_(options), tokenizer_(tokenizer) {
    const int64_t room = options.max_positions - rules_.max_new_tokens;
    if (room < 1)
      throw bad_input(name_, fmt::format("answers of {} tokens", rules_.max_new_tokens),
                      fmt::format("fewer than the model's {} positions", options.max_positions));
    const int64_t shots = options.num_fewshot.value_or(default_shots);
    const std::vector<std::string> contexts = few_shot_contexts(group, shots, options.limit);
    for (size_t i = 0; i < contexts.size(); ++i) {
      std::vector<int32_t> prompt = encode_raw_prompt(contexts[i], tokenizer);
      const int64_t beyond = static_cast<int64_t>(prompt.size()) - room;
      if (beyond > 0) prompt.erase(prompt.begin(), prompt.begin() + beyond);
      longest_ = std::max(longest_, static_cast<int64_t>(prompt.size()));
      prompts_.push_back(std::move(prompt));
      targets_.push_back(group.documents[i].target);
    }
  }

  int64_t items() const override { return static_cast<int64_t>(prompts_.size()); }

  void run(Llama& model, const std::vector<int64_t>& items, const ItemSink& done) const override {
    if (items.empty()) return;
    const int64_t capacity = longest_ + rules_.max_new_tokens,
                  together = sequences_together(options_, capacity, static_cast<int64_t>(items.size()));
    Decoder decoder(model, capacity, together);
    std::vector<std::span<const int32_t>> prompts;
    for (const int64_t item : items) prompts.emplace_back(prompts_[item]);
    std::vector<std::vector<int32_t>> answers(items.size());
    const auto goes_on = [&](size_t i, int32_t token) {
      answers[i].push_back(token);
      return stop_at(tokenizer_.decode(answers[i], true)) == std::string::npos;
    };
    generate_together(decoder, prompts, {rules_.max_new_tokens, {}, options_.stop_ids}, goes_on,
                      [&](size_t i, const Generation& answer) {
                        done({items[i], result(items[i], tokenizer_.decode(answers[i], true)),
                              static_cast<int64_t>(prompts[i].size() + answer.tokens.size())});
                      });
  }

  Json metrics(const std::vector<Json>& results) const override {
    Json json;
    for (const AnswerExtraction& extraction : rules_.extractions) add_mean(json, extraction.metric, results);
    const auto unfinished = std::count_if(results.begin(), results.end(),
                                          [](const Json& result) { return result.contains("match_limit"); });
    if (unfinished > 0) {
      json["match_limit"] = unfinished;
      spdlog::warn(
          "{}: in {} of {} answers a regular expression took too many steps to match: they count as wrong",
          name_, unfinished, results.size());
    }
    json["n"] = results.size();
    return json;
  }

  Json result_form(int64_t /*item*/) const override {
    Json form = Json::object();
    for (const AnswerExtraction& extraction : rules_.extractions) form[extraction.metric] = 0;
    return form;
  }

  std::string fingerprint() const override {
    TaskFingerprint fingerprint(name_);
    for (size_t i = 0; i < prompts_.size(); ++i) {
      fingerprint.add(prompts_[i], static_cast<int64_t>(prompts_[i].size()));
      fingerprint.add(targets_[i]);
    }
    for (const std::string& stop : rules_.stop) fingerprint.add(stop);
    for (const AnswerExtraction& extraction : rules_.extractions)
      fingerprint.add(fmt::format("{} {} {}", extraction.metric, extraction.last,
                                  extraction.pattern ? extraction.pattern->pattern() : ""));
    for (const auto& pattern : rules_.ignored) fingerprint.add(pattern->pattern());
    fingerprint.add(fmt::format("{} {}", rules_.max_new_tokens, rules_.ignore_case));
    return fingerprint.hex();
  }

 private:
  Json result(int64_t item, std::string text) const {
    text.resize(std::min(text.size(), stop_at(text)));
    Json json = {{"text", text}, {"target", targets_[item]}};
    for (const AnswerExtraction& extraction : rules_.extractions) {
      json[extraction.metric] = 0;
      try {
        if (same_answer(rules_, extract_answer(extraction, text), targets_[item]))
          json[extraction.metric] = 1;
      } catch (const MatchLimit&) {
        json["match_limit"] = true;
      }
    }
    return json;
  }

  size_t stop_at(const std::string& text) const {
    size_t first = std::string::npos;
    for (const std::string& stop : rules_.stop) first = std::min(first, text.find(stop));
    return first;
  }

  std::string name_;
  AnswerRules rules_;
  TaskOptions options_;
  const Tokenizer& tokenizer_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<std::string> targets_;
  int64_t longest_ = 0;
};

}  // namespace

AnswerRules gsm8k_answers() {
  AnswerRules rules;
  rules.extractions = {{"exact_match", built_in(R"(#### (\-?[0-9\.\,]+))"), false},
                       {"exact_match_flexible", built_in(R"((-?[$0-9.,]{2,})|(-?[0-9]+))"), true}};
  rules.stop = {"Question:", "</s>", "<|im_end|>"};
  for (const char* pattern : {",", "\\$", "(?s).*#### ", "\\.$"}) rules.ignored.push_back(built_in(pattern));
  rules.ignore_case = true;
  return rules;
}

std::string extract_answer(const AnswerExtraction& extraction, std::string_view text) {
  if (extraction.pattern == nullptr) return std::string(trim_white_space(text));
  const std::vector<std::vector<std::string>> found = extraction.pattern->find_all(text);
  if (found.empty()) return "[invalid]";
  const std::vector<std::string>& groups = extraction.last ? found.back() : found.front();
  if (groups.size() == 1) return std::string(trim_white_space(groups[0]));
  for (const std::string& group : groups)
    if (!group.empty()) return std::string(trim_white_space(group));
  return "[invalid]";
}

bool same_answer(const AnswerRules& rules, std::string_view answer, std::string_view target) {
  return normalised(rules, answer) == normalised(rules, target);
}

std::unique_ptr<Task> make_answer_task(std::string_view name, DocumentGroup group, AnswerRules rules,
                                       int64_t default_shots, const TaskOptions& options,
                                       const Tokenizer& tokenizer) {
  return std::make_unique<AnswerTask>(std::string(name), group, std::move(rules), default_shots, options,
                                      tokenizer);
}

}  // namespace satune
