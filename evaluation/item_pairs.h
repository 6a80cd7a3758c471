// The results of two sides item by item, as what paired tests of a metric draw from.
#pragma once

#include <string>
#include <vector>

#include "evaluation/paired_tests.h"
#include "evaluation/result_set.h"

namespace satune {

/// The items of one side.
struct NamedItems {
  const ItemResults& items;
  std::string name;  ///< in errors: "dense.json: task quiz"
};

struct MetricPairs {
  std::vector<PairedItem> items;  ///< what is drawn; empty where the items do not tell the metric
  Statistic metric = nullptr;
  bool right_or_wrong = false;  ///< a mean of zeros and ones: McNemar's test applies
};

/// `metric` as result_metrics() names it. Items tell means of their own numbers, a loss per token,
/// perplexity = exp(loss), f1 and mcc of two choices, and those of MMLU's subjects and categories where they
/// say which they belong to. Of windows that tell their page (wikitext) pages are drawn: word_perplexity,
/// byte_perplexity and bits_per_byte are ratios of their losses and sizes. An item that only one side has
/// tells nothing about any. Throws BadInput naming side and item for null in the place of a number: it was
/// none, and no mean has an order then.
MetricPairs pair_items(const NamedItems& a, const NamedItems& b, const std::string& metric);

}  // namespace satune
