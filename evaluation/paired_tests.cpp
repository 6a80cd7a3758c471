#include "evaluation/paired_tests.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace satune {
namespace {

void add(ItemSums& sums, const ItemSums& item) {
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += item[i];
}

/// Linear between neighbours, as NumPy's default.
double quantile(const std::vector<double>& sorted, double q) {
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(place);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (place - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

}  // namespace

std::optional<PairedDifference> paired_bootstrap(const std::vector<PairedItem>& items, Statistic metric,
                                                 int64_t resamples, RandomStream& random) {
  if (items.empty() || resamples < 1) throw std::logic_error("paired_bootstrap: nothing to draw from");
  PairedItem all;
  for (const PairedItem& item : items) {
    add(all.a, item.a);
    add(all.b, item.b);
  }
  std::vector<double> draws(resamples);
  double mean = 0;
  for (double& draw : draws) {
    PairedItem sums;
    for (size_t i = 0; i < items.size(); ++i) {
      const PairedItem& item = items[random.below(items.size())];
      add(sums.a, item.a);
      add(sums.b, item.b);
    }
    draw = metric(sums.b) - metric(sums.a);
    if (!std::isfinite(draw)) return std::nullopt;
    mean += draw / static_cast<double>(resamples);
  }
  double squares = 0;
  for (const double draw : draws) squares += (draw - mean) * (draw - mean);
  std::sort(draws.begin(), draws.end());
  return PairedDifference{metric(all.b) - metric(all.a),
                          std::sqrt(squares / static_cast<double>(std::max<int64_t>(resamples - 1, 1))),
                          quantile(draws, 0.025), quantile(draws, 0.975)};
}

double mcnemar_p_value(int64_t only_a, int64_t only_b) {
  const int64_t n = only_a + only_b, fewer = std::min(only_a, only_b);
  double sum = 0;
  for (int64_t k = 0; k <= fewer; ++k) {
    const double log_choose = std::lgamma(static_cast<double>(n + 1)) -
                              std::lgamma(static_cast<double>(k + 1)) -
                              std::lgamma(static_cast<double>(n - k + 1));
    sum += std::exp(log_choose - static_cast<double>(n) * std::log(2.0));
  }
  return std::min(1.0, 2 * sum);
}

}  // namespace satune
