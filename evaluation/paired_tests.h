// Whether two sets of results on the same items differ by more than chance.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "data/random.h"

namespace satune {

/// What an item adds to the sums that a metric is made of: a loss and its target tokens; 0 or 1 and 1; a one
/// in its cell of a confusion matrix.
using ItemSums = std::array<double, 4>;

/// The metric that sums over items give.
using Statistic = double (*)(const ItemSums& sums);

/// One item under A and under B.
struct PairedItem {
  ItemSums a = {}, b = {};
};

/// Of d = metric(B) - metric(A).
struct PairedDifference {
  double difference = 0;
  double standard_error = 0;  ///< standard deviation of d over the resamples
  double low = 0, high = 0;   ///< 95 % percentile interval of d
};

/// Paired bootstrap (Efron and Tibshirani 1993): items are drawn with replacement, each with both its
/// results, and d is taken anew. Nothing where d of a resample is not finite (a perplexity beyond the range
/// of doubles): such draws have no order. Throws std::logic_error without items or resamples.
std::optional<PairedDifference> paired_bootstrap(const std::vector<PairedItem>& items, Statistic metric,
                                                 int64_t resamples, RandomStream& random);

/// McNemar's exact test (two-sided binomial): of the items that one side alone has right, `only_a` and
/// `only_b`, how likely is a split at least as uneven if both sides are as good? 1 where there are none.
double mcnemar_p_value(int64_t only_a, int64_t only_b);

}  // namespace satune
