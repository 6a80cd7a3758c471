#include "evaluation/item_pairs.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "evaluation/classification.h"

namespace satune {
namespace {

double ratio(const ItemSums& sums) {
  return sums[0] / sums[1];
}

double exp_of_ratio(const ItemSums& sums) {
  return std::exp(ratio(sums));
}

template <double (*kMetric)(const ConfusionCounts&)>
double of_confusion(const ItemSums& sums) {
  ConfusionCounts counts(2);
  for (int64_t gold = 0; gold < 2; ++gold)
    for (int64_t chosen = 0; chosen < 2; ++chosen)
      counts.add(gold, chosen, std::llround(sums[2 * gold + chosen]));
  return kMetric(counts);
}

std::optional<double> number_in(const Json& result, const std::string& key) {
  const auto it = result.find(key);
  if (it == result.end()) return std::nullopt;
  if (it->is_boolean()) return it->get<bool>() ? 1.0 : 0.0;
  return it->is_number() ? std::optional(it->get<double>()) : std::nullopt;
}

std::optional<ItemSums> loss_sums(const Json& result) {
  const std::optional<double> loss = number_in(result, "loss");
  if (!loss) return std::nullopt;
  return ItemSums{*loss, number_in(result, "tokens").value_or(1)};
}

/// A one in the cell of a confusion matrix of two choices.
std::optional<ItemSums> confusion_sums(const Json& result) {
  const std::optional<double> gold = number_in(result, "gold");
  const auto scores = result.find("log_likelihoods");
  if (!gold || (*gold != 0 && *gold != 1) || scores == result.end() || !scores->is_array() ||
      scores->size() != 2 || !(*scores)[0].is_number() || !(*scores)[1].is_number())
    return std::nullopt;
  const bool second = (*scores)[1].get<double>() > (*scores)[0].get<double>();
  ItemSums sums = {};
  sums[2 * static_cast<size_t>(*gold) + (second ? 1 : 0)] = 1;
  return sums;
}

/// A metric of all items or of those whose result holds `part` under `key`.
struct MetricOfPart {
  std::string metric, key, part;
};

MetricOfPart split_name(const std::string& name) {
  const size_t first = name.find('.'), last = name.rfind('.');
  if (first == std::string::npos || first == last) return {name, "", ""};
  const std::string group = name.substr(0, first);
  return {name.substr(last + 1), group == "categories" ? "category" : "subject",
          name.substr(first + 1, last - first - 1)};
}

/// 1 and 0 of equal items: what McNemar's test counts.
bool is_zero_or_one(const ItemSums& sums) {
  return (sums[0] == 0 || sums[0] == 1) && sums[1] == 1;
}

}  // namespace

MetricPairs pair_items(const ItemResults& a, const ItemResults& b, const std::string& name) {
  const auto [metric, key, part] = split_name(name);
  const bool loss = metric == "loss" || metric == "perplexity", confusion = metric == "f1" || metric == "mcc";
  const auto sums_of = [&](const Json& result) -> std::optional<ItemSums> {
    if (loss) return loss_sums(result);
    if (confusion) return confusion_sums(result);
    const std::optional<double> value = number_in(result, metric);
    return value ? std::optional(ItemSums{*value, 1}) : std::nullopt;
  };
  MetricPairs pairs;
  pairs.metric = metric == "perplexity" ? exp_of_ratio
                 : metric == "f1"       ? of_confusion<f1_score>
                 : metric == "mcc"      ? of_confusion<matthews_correlation>
                                        : ratio;
  for (const auto& [item, result] : a) {
    const auto other = b.find(item);
    if (other == b.end()) return {};
    if (!key.empty()) {
      const auto found = result.find(key);
      if (found == result.end()) return {};
      if (*found != part) continue;
    }
    const std::optional<ItemSums> of_a = sums_of(result), of_b = sums_of(other->second);
    if (!of_a || !of_b) return {};
    pairs.items.push_back({*of_a, *of_b});
  }
  pairs.right_or_wrong =
      !loss && !confusion && std::all_of(pairs.items.begin(), pairs.items.end(), [](const PairedItem& pair) {
        return is_zero_or_one(pair.a) && is_zero_or_one(pair.b);
      });
  return pairs;
}

}  // namespace satune
