// Results side by side: differences with their errors, tests over the same items, and thresholds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "evaluation/result_set.h"

namespace satune {

/// One metric of one task under A and B.
struct MetricComparison {
  std::string task;    ///< "" for a measurement of the whole
  std::string metric;  ///< of a part of a task "subjects.anatomy.acc"
  double a = 0, b = 0;
  std::optional<double> a_stderr = {}, b_stderr = {};
  int64_t paired_items = 0;                   ///< 0 = no results item by item
  std::optional<double> paired_stderr = {};   ///< of b - a, by paired bootstrap
  std::optional<double> low = {}, high = {};  ///< its 95 % interval
  std::optional<double> mcnemar_p = {};       ///< of metrics that are right or wrong

  double difference() const { return b - a; }
  /// "task.metric", or the metric alone.
  std::string name() const { return task.empty() ? metric : task + "." + metric; }
};

struct ComparisonOptions {
  int64_t resamples = 2000;
  uint64_t seed = 42;
};

/// Every number that both sides have, tasks first. Throws BadInput where the two cannot be compared: no task
/// in common; a task whose items differ (another fingerprint: other data, template or tokenizer), or without
/// items another "n", "tokens" or "over_length"; runs over different data;
/// answers to different prompts.
std::vector<MetricComparison> compare_results(const ResultSet& a, const ResultSet& b,
                                              const ComparisonOptions& options);

/// How much worse B may be: "acc=0.01", "hellaswag.acc=1%" (of A's value).
struct Threshold {
  std::string text;  ///< as given
  std::string metric;
  double allowed = 0;
  bool relative = false;
  bool rise = false;  ///< B above A is the regression; else B below A
};

/// Throws BadInput naming `option` for anything but METRIC=NUMBER or METRIC=NUMBER% of at least 0.
Threshold parse_threshold(const std::string& text, bool rise, const std::string& option);

struct Regression {
  size_t row = 0;  ///< of the comparison
  Threshold threshold;
};

/// The rows beyond a threshold. A metric is named alone (every task that has it) or as TASK.METRIC. A value
/// that is not a number is beyond every threshold. Throws BadInput for a threshold that no row answers to.
std::vector<Regression> find_regressions(const std::vector<MetricComparison>& rows,
                                         const std::vector<Threshold>& thresholds);

}  // namespace satune
