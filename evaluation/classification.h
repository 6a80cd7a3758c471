// F1 and Matthews' correlation out of counts of right and wrong choices.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace satune {

/// counts(gold, chosen) of `classes` classes.
class ConfusionCounts {
 public:
  explicit ConfusionCounts(int64_t classes)
      : classes_(classes), counts_(static_cast<size_t>(classes * classes)) {}

  void add(int64_t gold, int64_t chosen, int64_t count = 1) { at(gold, chosen) += count; }
  int64_t classes() const { return classes_; }
  int64_t operator()(int64_t gold, int64_t chosen) const { return counts_[gold * classes_ + chosen]; }
  int64_t items() const;

 private:
  int64_t& at(int64_t gold, int64_t chosen) { return counts_[gold * classes_ + chosen]; }

  int64_t classes_;
  std::vector<int64_t> counts_;
};

/// F1 of class 1, as scikit-learn's f1_score of a binary task; 0 where nothing is or is called class 1.
double f1_score(const ConfusionCounts& counts);

/// Matthews' correlation coefficient for any number of classes (Gorodkin 2004), as scikit-learn's; 0 where
/// one of the two sides has a single class.
double matthews_correlation(const ConfusionCounts& counts);

/// Standard error of a metric of the counts by the jackknife: sqrt((n - 1) / n * sum_i (m_i - mean)^2), m_i
/// the metric without item i. (lm-eval resamples at random, which estimates the same.) Nothing for fewer than
/// 2 items.
std::optional<double> jackknife_error(const ConfusionCounts& counts,
                                      const std::function<double(const ConfusionCounts&)>& metric);

}  // namespace satune
