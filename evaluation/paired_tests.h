// Whether two sets of results on the same items differ by more than chance.
#pragma once

#include <cstdint>
#include <vector>

#include "data/random.h"

namespace satune {

/// One item's value and weight under A and under B (a loss and its target tokens; 0 or 1 and 1).
struct PairedItem {
  double a = 0, b = 0;
  double weight_a = 1, weight_b = 1;
};

/// Of d = ratio(B) - ratio(A), ratio = sum of values / sum of weights.
struct PairedDifference {
  double difference = 0;
  double standard_error = 0;  ///< standard deviation of d over the resamples
  double low = 0, high = 0;   ///< 95 % percentile interval of d
};

/// Paired bootstrap (Efron and Tibshirani 1993): items are drawn with replacement, each with both its
/// results, and d is taken anew. Throws std::logic_error without items or resamples.
PairedDifference paired_bootstrap(const std::vector<PairedItem>& items, int64_t resamples,
                                  RandomStream& random);

/// McNemar's exact test (two-sided binomial): of the items that one side alone has right, `only_a` and
/// `only_b`, how likely is a split at least as uneven if both sides are as good? 1 where there are none.
double mcnemar_p_value(int64_t only_a, int64_t only_b);

}  // namespace satune
