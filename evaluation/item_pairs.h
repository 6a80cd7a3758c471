// The results of two sides item by item, as what paired tests of a metric draw from.
#pragma once

#include <string>
#include <vector>

#include "evaluation/paired_tests.h"
#include "evaluation/result_set.h"

namespace satune {

struct MetricPairs {
  std::vector<PairedItem> items;  ///< empty where the items do not tell the metric
  Statistic metric = nullptr;
  bool right_or_wrong = false;  ///< a mean of zeros and ones: McNemar's test applies
};

/// `metric` as result_metrics() names it. Items tell means of their own numbers, a loss per token,
/// perplexity = exp(loss), f1 and mcc of two choices, and those of MMLU's subjects and categories where they
/// say which they belong to. An item that only one side has tells nothing about any.
MetricPairs pair_items(const ItemResults& a, const ItemResults& b, const std::string& metric);

}  // namespace satune
