#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "data/files/error.h"
#include "data/utf8.h"
#include "evaluation/benchmark.h"
#include "evaluation/classification.h"
#include "evaluation/log_likelihood.h"
#include "evaluation/records.h"
#include "evaluation/sums.h"

namespace satune {
namespace {

struct ChoiceItem {
  int64_t gold = 0;
  std::vector<int64_t> lengths;  ///< of the choices, in code points
  size_t group = 0;
};

int64_t count_code_points(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

int64_t index_of_largest(const std::vector<double>& values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

/// Mean and its error of several parts, pooled as lm-eval's pooled_sample_stderr does.
class PooledMean {
 public:
  void add(const RatioSums& part) {
    sums_ += part;
    ++parts_;
    const double n = static_cast<double>(part.items), error = part.standard_error().value_or(0);
    spread_ += (n - 1) * n * error * error;
  }
  Json json() const {
    const auto n = static_cast<double>(sums_.items);
    Json json = {{"acc", sums_.ratio()}};
    if (sums_.items > parts_) json["acc_stderr"] = std::sqrt(spread_ / (n - static_cast<double>(parts_)) / n);
    json["n"] = sums_.items;
    return json;
  }

 private:
  RatioSums sums_;
  int64_t parts_ = 0;
  double spread_ = 0;
};

class ChoiceTask final : public Task {
 public:
  ChoiceTask(std::string name, std::vector<DocumentGroup> groups, ChoiceMetrics metrics,
             int64_t default_shots, const TaskOptions& options, const Tokenizer& tokenizer)
      : name_(std::move(name)), groups_(std::move(groups)), metrics_(metrics), options_(options) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      const std::vector<std::string> contexts =
          few_shot_contexts(groups_[g], options.num_fewshot.value_or(default_shots), options.limit);
      for (size_t i = 0; i < contexts.size(); ++i)
        add_item(g, groups_[g].documents[i], contexts[i], tokenizer);
      groups_[g].documents.clear();
      groups_[g].pool.clear();
    }
  }

  int64_t items() const override { return static_cast<int64_t>(items_.size()); }

  void run(Llama& model, const std::vector<int64_t>& items, const ItemSink& done) const override {
    for (const auto& pass : plan_scoring(sequences_, items, options_.batch_size, options_.batch_tokens,
                                         worth_sharing(model.weights().device()))) {
      std::vector<const ScoredSequence*> sequences;
      for (const int64_t item : pass)
        for (const ScoredSequence& sequence : sequences_[item]) sequences.push_back(&sequence);
      const Scores scores = score_sequences(model, sequences);
      auto score = scores.log_likelihoods.begin();
      int64_t tokens = scores.tokens;  // of the pass: the first of its items counts them
      for (const int64_t item : pass) {
        const auto end = score + static_cast<ptrdiff_t>(sequences_[item].size());
        done({item, result(items_[item], {score, end}), std::exchange(tokens, 0)});
        score = end;
      }
    }
  }

  Json metrics(const std::vector<Json>& results) const override {
    if (!groups_.front().name.empty()) return group_metrics(results);
    Json json;
    for (const auto& [wanted, key] :
         {std::pair(metrics_.acc, "acc"), std::pair(metrics_.acc_norm, "acc_norm")}) {
      if (!wanted) continue;
      add_mean(json, key, results);
    }
    if (metrics_.f1) add_counted(json, "f1", f1_score, results);
    if (metrics_.mcc) add_counted(json, "mcc", matthews_correlation, results);
    json["n"] = results.size();
    return json;
  }

  Json result_form(int64_t item) const override {
    return {{"log_likelihoods", std::vector<double>(sequences_[static_cast<size_t>(item)].size())},
            {"acc", 0},
            {"acc_norm", 0}};
  }

  std::string fingerprint() const override {
    TaskFingerprint fingerprint(name_);
    for (size_t i = 0; i < items_.size(); ++i) {
      for (const ScoredSequence& sequence : sequences_[i])
        fingerprint.add(sequence.tokens, static_cast<int64_t>(sequence.tokens.size()) - sequence.targets);
      fingerprint.add(fmt::format("gold {} lengths {}", items_[i].gold, fmt::join(items_[i].lengths, ",")));
    }
    return fingerprint.hex();
  }

 private:
  void add_item(size_t group, const BenchmarkDocument& document, const std::string& context,
                const Tokenizer& tokenizer) {
    ChoiceItem item{document.gold, {}, group};
    std::vector<ScoredSequence> sequences;
    for (const std::string& choice : document.choices) {
      sequences.push_back(
          encode_scored(context, " " + choice, tokenizer, options_.max_positions, document.where));
      item.lengths.push_back(count_code_points(choice));
    }
    items_.push_back(std::move(item));
    sequences_.push_back(std::move(sequences));
  }

  Json result(const ChoiceItem& item, const std::vector<double>& scores) const {
    std::vector<double> normalised;
    for (size_t i = 0; i < scores.size(); ++i)
      normalised.push_back(scores[i] / static_cast<double>(item.lengths[i]));
    Json json = {{"log_likelihoods", scores},
                 {"gold", item.gold},
                 {"acc", index_of_largest(scores) == item.gold ? 1 : 0},
                 {"acc_norm", index_of_largest(normalised) == item.gold ? 1 : 0}};
    const DocumentGroup& group = groups_[item.group];
    if (!group.name.empty()) json.update({{"subject", group.name}, {"category", group.category}});
    return json;
  }

  void add_counted(Json& json, const std::string& key, double (*metric)(const ConfusionCounts&),
                   const std::vector<Json>& results) const {
    ConfusionCounts counts(2);
    for (size_t i = 0; i < results.size(); ++i)
      counts.add(items_[i].gold, index_of_largest(results[i]["log_likelihoods"].get<std::vector<double>>()));
    add_metric(json, key, metric(counts), jackknife_error(counts, metric));
  }

  Json group_metrics(const std::vector<Json>& results) const {
    std::vector<RatioSums> sums(groups_.size());
    for (size_t i = 0; i < results.size(); ++i) sums[items_[i].group].add(results[i]["acc"], 1.0);
    PooledMean all;
    std::map<std::string, PooledMean> categories;
    Json subjects = Json::object();
    for (size_t g = 0; g < groups_.size(); ++g) {
      all.add(sums[g]);
      categories[groups_[g].category].add(sums[g]);
      Json subject;
      add_metric(subject, "acc", sums[g]);
      subject["n"] = sums[g].items;
      subjects[groups_[g].name] = std::move(subject);
    }
    Json json = all.json();
    for (const auto& [name, category] : categories) json["categories"][name] = category.json();
    json["subjects"] = std::move(subjects);
    if (!metrics_.missing_subjects.empty()) json["missing_subjects"] = metrics_.missing_subjects;
    return json;
  }

  std::string name_;
  std::vector<DocumentGroup> groups_;  ///< names only, once the items are made
  ChoiceMetrics metrics_;
  TaskOptions options_;
  std::vector<ChoiceItem> items_;
  std::vector<std::vector<ScoredSequence>> sequences_;  ///< by item, one a choice
};

}  // namespace

std::unique_ptr<Task> make_choice_task(std::string_view name, std::vector<DocumentGroup> groups,
                                       ChoiceMetrics metrics, int64_t default_shots,
                                       const TaskOptions& options, const Tokenizer& tokenizer) {
  return std::make_unique<ChoiceTask>(std::string(name), std::move(groups), metrics, default_shots, options,
                                      tokenizer);
}

}  // namespace satune
