#include "evaluation/item_pairs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "data/files/error.h"
#include "evaluation/classification.h"

namespace satune {
namespace {

double ratio(const ItemSums& sums) {
  return sums[0] / sums[1];
}

double exp_of_ratio(const ItemSums& sums) {
  return std::exp(ratio(sums));
}

double bits_of_ratio(const ItemSums& sums) {
  return ratio(sums) / std::log(2.0);
}

template <double (*kMetric)(const ConfusionCounts&)>
double of_confusion(const ItemSums& sums) {
  ConfusionCounts counts(2);
  for (int64_t gold = 0; gold < 2; ++gold)
    for (int64_t chosen = 0; chosen < 2; ++chosen)
      counts.add(gold, chosen, std::llround(sums[2 * gold + chosen]));
  return kMetric(counts);
}

/// `where`: side and item, for the error.
std::optional<double> number_in(const Json& result, const std::string& key, const std::string& where) {
  const auto it = result.find(key);
  if (it == result.end()) return std::nullopt;
  if (it->is_null()) throw bad_input(where, "null under " + key, "a finite number");
  if (it->is_boolean()) return it->get<bool>() ? 1.0 : 0.0;
  return it->is_number() ? std::optional(it->get<double>()) : std::nullopt;
}

std::optional<ItemSums> loss_sums(const Json& result, const std::string& where) {
  const std::optional<double> loss = number_in(result, "loss", where);
  if (!loss) return std::nullopt;
  return ItemSums{*loss, number_in(result, "tokens", where).value_or(1)};
}

/// A one in the cell of a confusion matrix of two choices.
std::optional<ItemSums> confusion_sums(const Json& result, const std::string& where) {
  const std::optional<double> gold = number_in(result, "gold", where);
  const auto scores = result.find("log_likelihoods");
  if (scores != result.end() && scores->is_array() &&
      std::any_of(scores->begin(), scores->end(), [](const Json& score) { return score.is_null(); }))
    throw bad_input(where, "null under log_likelihoods", "finite numbers");
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

std::string item_text(const NamedItems& side, int64_t item) {
  return fmt::format("{}: item {}", side.name, item);
}

/// A window's loss, and the size of its page, which each of its windows tells.
struct PageWindow {
  double page = 0, loss = 0, size = 0;
};

std::optional<PageWindow> page_window(const Json& result, const std::string& size, const std::string& where) {
  const std::optional<double> page = number_in(result, "page", where),
                              score = number_in(result, "log_likelihood", where),
                              of_page = number_in(result, size, where);
  if (!page || !score || !of_page) return std::nullopt;
  return PageWindow{*page, -*score, *of_page};
}

std::vector<PairedItem> pair_pages(const NamedItems& a, const NamedItems& b, const std::string& size) {
  std::map<double, PairedItem> pages;
  for (const auto& [item, result] : a.items) {
    const auto other = b.items.find(item);
    if (other == b.items.end()) return {};
    const std::optional<PageWindow> of_a = page_window(result, size, item_text(a, item)),
                                    of_b = page_window(other->second, size, item_text(b, item));
    if (!of_a || !of_b || of_a->page != of_b->page) return {};
    PairedItem& page = pages[of_a->page];
    page.a[0] += of_a->loss;
    page.b[0] += of_b->loss;
    page.a[1] = of_a->size;
    page.b[1] = of_b->size;
  }
  std::vector<PairedItem> pairs;
  pairs.reserve(pages.size());
  for (const auto& [page, pair] : pages) pairs.push_back(pair);
  return pairs;
}

}  // namespace

MetricPairs pair_items(const NamedItems& a, const NamedItems& b, const std::string& name) {
  const auto [metric, key, part] = split_name(name);
  if (metric == "word_perplexity") return {pair_pages(a, b, "words"), exp_of_ratio, false};
  if (metric == "byte_perplexity") return {pair_pages(a, b, "bytes"), exp_of_ratio, false};
  if (metric == "bits_per_byte") return {pair_pages(a, b, "bytes"), bits_of_ratio, false};
  const bool loss = metric == "loss" || metric == "perplexity", confusion = metric == "f1" || metric == "mcc";
  const auto sums_of = [&](const Json& result, const std::string& where) -> std::optional<ItemSums> {
    if (loss) return loss_sums(result, where);
    if (confusion) return confusion_sums(result, where);
    const std::optional<double> value = number_in(result, metric, where);
    return value ? std::optional(ItemSums{*value, 1}) : std::nullopt;
  };
  MetricPairs pairs;
  pairs.metric = metric == "perplexity" ? exp_of_ratio
                 : metric == "f1"       ? of_confusion<f1_score>
                 : metric == "mcc"      ? of_confusion<matthews_correlation>
                                        : ratio;
  for (const auto& [item, result] : a.items) {
    const auto other = b.items.find(item);
    if (other == b.items.end()) return {};
    if (!key.empty()) {
      const auto found = result.find(key);
      if (found == result.end()) return {};
      if (*found != part) continue;
    }
    const std::optional<ItemSums> of_a = sums_of(result, item_text(a, item)),
                                  of_b = sums_of(other->second, item_text(b, item));
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
