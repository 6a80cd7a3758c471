#include "evaluation/classification.h"

#include <cmath>
#include <numeric>

namespace satune {

int64_t ConfusionCounts::items() const {
  return std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
}

double f1_score(const ConfusionCounts& counts) {
  int64_t gold = 0, chosen = 0;
  for (int64_t i = 0; i < counts.classes(); ++i) {
    gold += counts(1, i);
    chosen += counts(i, 1);
  }
  return gold + chosen == 0 ? 0.0
                            : 2.0 * static_cast<double>(counts(1, 1)) / static_cast<double>(gold + chosen);
}

double matthews_correlation(const ConfusionCounts& counts) {
  const auto n = static_cast<double>(counts.items());
  double right = 0, gold_chosen = 0, gold_squared = 0, chosen_squared = 0;
  for (int64_t k = 0; k < counts.classes(); ++k) {
    double gold = 0, chosen = 0;
    for (int64_t i = 0; i < counts.classes(); ++i) {
      gold += static_cast<double>(counts(k, i));
      chosen += static_cast<double>(counts(i, k));
    }
    right += static_cast<double>(counts(k, k));
    gold_chosen += gold * chosen;
    gold_squared += gold * gold;
    chosen_squared += chosen * chosen;
  }
  const double spread = (n * n - gold_squared) * (n * n - chosen_squared);
  return spread > 0 ? (right * n - gold_chosen) / std::sqrt(spread) : 0.0;
}

std::optional<double> jackknife_error(const ConfusionCounts& counts,
                                      const std::function<double(const ConfusionCounts&)>& metric) {
  const auto n = static_cast<double>(counts.items());
  if (n < 2) return std::nullopt;
  // All items of one cell leave the same metric behind.
  double sum = 0, squares = 0;
  for (int64_t gold = 0; gold < counts.classes(); ++gold)
    for (int64_t chosen = 0; chosen < counts.classes(); ++chosen) {
      const auto cell = static_cast<double>(counts(gold, chosen));
      if (cell == 0) continue;
      ConfusionCounts without = counts;
      without.add(gold, chosen, -1);
      const double value = metric(without);
      sum += cell * value;
      squares += cell * value * value;
    }
  const double spread = std::max(0.0, squares - sum * sum / n);
  return std::sqrt((n - 1) / n * spread);
}

}  // namespace satune
