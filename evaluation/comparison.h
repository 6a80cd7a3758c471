// Results side by side: differences with their errors, tests over the same items, and thresholds.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "evaluation/result_set.h"

namespace satune {

/// One metric of one task under A and B, or a measurement of the whole.
struct MetricComparison {
  std::string task;                      ///< "" for a measurement of the whole
  std::string metric;                    ///< of a part of a task "subjects.anatomy.acc"
  std::optional<double> a = {}, b = {};  ///< nothing = that side has not measured it; NaN = it was no number
  std::optional<double> a_stderr = {}, b_stderr = {};
  int64_t paired_items = 0;  ///< 0 = no results item by item, or a resample's metric that is not finite
  std::optional<double> paired_stderr = {};   ///< of b - a, by paired bootstrap
  std::optional<double> low = {}, high = {};  ///< its 95 % interval
  std::optional<double> mcnemar_p = {};       ///< of metrics that are right or wrong

  std::optional<double> difference() const { return a && b ? std::optional(*b - *a) : std::nullopt; }
  /// "task.metric", or the metric alone.
  std::string name() const { return task.empty() ? metric : task + "." + metric; }
};

struct ComparisonOptions {
  int64_t resamples = 2000;
  uint64_t seed = 42;
};

/// Every number that both sides have, tasks first; then what either measured of the whole, and kCosts whether
/// measured or not. Throws BadInput where the two cannot be compared: no task in common; a task whose
/// fingerprints differ, the error telling which of data, template and tokenizer; or without fingerprints
/// another number of items, tokens or records left out; runs on other texts; answers to other prompts; and
/// for an item whose result is null where a number belongs, naming side, task and item.
std::vector<MetricComparison> compare_results(const ResultSet& a, const ResultSet& b,
                                              const ComparisonOptions& options = {});

/// What a comparison shows even where nobody has measured it: latency, speed, memory, energy.
inline constexpr const char* kCosts[] = {
    "time_to_first_token_s", "time_per_token_s",         "tokens_per_s",
    "peak_memory_bytes",     "kv_cache_bytes_per_token", "device_energy_joules_per_token"};

/// What a reader must know before the numbers, a sentence each: runs at different steps, other precisions,
/// tasks that one side alone has.
std::vector<std::string> comparison_notes(const ResultSet& a, const ResultSet& b);

/// "acc=0.01": B may lie 0.01 below A; "acc=1%": 1 % of A's value.
struct Threshold {
  std::string text, metric;
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
/// that is not a number is beyond every threshold. Throws BadInput for a threshold that no row with both
/// values answers to.
std::vector<Regression> find_regressions(const std::vector<MetricComparison>& rows,
                                         const std::vector<Threshold>& thresholds);

/// B against A.
struct Comparison {
  std::shared_ptr<const ResultSet> a, b;  ///< all comparisons of a call have one A
  std::vector<MetricComparison> rows;
  std::vector<std::string> notes;
  std::vector<Regression> regressions;
};

/// Each side but the first against it, as compare_results() and find_regressions() do.
std::vector<Comparison> compare_with_first(std::vector<ResultSet> sides,
                                           const std::vector<Threshold>& thresholds,
                                           const ComparisonOptions& options);

}  // namespace satune
