#include "evaluation/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <tuple>

#include "data/files/error.h"
#include "evaluation/item_pairs.h"
#include "evaluation/same_ground.h"

namespace satune {
namespace {

void add_tests(MetricComparison& row, const MetricPairs& pairs, const ComparisonOptions& options) {
  if (pairs.items.empty()) return;
  RandomStream random(options.seed, "paired bootstrap " + row.name());
  const std::optional<PairedDifference> difference =
      paired_bootstrap(pairs.items, pairs.metric, options.resamples, random);
  if (!difference) return;
  row.paired_items = static_cast<int64_t>(pairs.items.size());
  row.paired_stderr = difference->standard_error;
  row.low = difference->low;
  row.high = difference->high;
  if (!pairs.right_or_wrong) return;
  int64_t only_a = 0, only_b = 0;
  for (const PairedItem& pair : pairs.items) {
    only_a += pair.a[0] > pair.b[0];
    only_b += pair.b[0] > pair.a[0];
  }
  row.mcnemar_p = mcnemar_p_value(only_a, only_b);
}

void compare_task(const std::string& task, const ResultSet& side_a, const ResultSet& side_b,
                  const ComparisonOptions& options, std::vector<MetricComparison>& rows) {
  const TaskResults &a = side_a.tasks.at(task), &b = side_b.tasks.at(task);
  const std::vector<Metric> others = result_metrics(b.metrics);
  for (const Metric& metric : result_metrics(a.metrics)) {
    const auto other = std::find_if(others.begin(), others.end(),
                                    [&](const Metric& each) { return each.name == metric.name; });
    if (other == others.end()) continue;
    MetricComparison row{task, metric.name, metric.value, other->value};
    row.a_stderr = metric.standard_error;
    row.b_stderr = other->standard_error;
    if (!a.items.empty() && !b.items.empty())
      add_tests(row,
                pair_items({a.items, fmt::format("{}: task {}", side_a.name, task)},
                           {b.items, fmt::format("{}: task {}", side_b.name, task)}, metric.name),
                options);
    rows.push_back(std::move(row));
  }
}

std::optional<double> measured_value(const ResultSet& side, const std::string& key) {
  const auto found = side.measurements.find(key);
  return found != side.measurements.end() ? std::optional(found->get<double>()) : std::nullopt;
}

std::optional<double> measured_error(const ResultSet& side, const std::string& key) {
  const auto found = side.measurement_errors.find(key);
  return found != side.measurement_errors.end() ? std::optional(found->second) : std::nullopt;
}

void compare_measurements(const ResultSet& a, const ResultSet& b, const ComparisonOptions& options,
                          std::vector<MetricComparison>& rows) {
  std::vector<std::string> keys;
  const auto add = [&](const std::string& key) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  };
  for (const ResultSet* side : {&a, &b})
    for (const auto& [key, value] : side->measurements.items()) add(key);
  for (const char* key : kCosts) add(key);
  for (const std::string& key : keys) {
    MetricComparison row{"", key, measured_value(a, key), measured_value(b, key)};
    row.a_stderr = measured_error(a, key);
    row.b_stderr = measured_error(b, key);
    if (row.a_stderr || row.b_stderr) {
      MetricPairs pairs = pair_items({a.answers, a.name}, {b.answers, b.name}, key);
      pairs.right_or_wrong = false;  // bytes may all be 0
      add_tests(row, pairs, options);
    }
    rows.push_back(std::move(row));
  }
}

}  // namespace

std::vector<MetricComparison> compare_results(const ResultSet& a, const ResultSet& b,
                                              const ComparisonOptions& options) {
  check_same_ground(a, b);
  std::vector<MetricComparison> rows;
  for (const auto& [task, results] : a.tasks)
    if (b.tasks.contains(task)) compare_task(task, a, b, options, rows);
  compare_measurements(a, b, options, rows);
  return rows;
}

std::vector<std::string> comparison_notes(const ResultSet& a, const ResultSet& b) {
  std::vector<std::string> notes;
  for (const auto& [metric, step] : a.steps) {
    const auto other = b.steps.find(metric);
    if (other != b.steps.end() && other->second != step)
      notes.push_back(fmt::format("{} at steps {} and {}", metric, step, other->second));
  }
  // Reports of eval tell theirs or are refused.
  for (const auto& [run, side] : {std::pair(&a, "A"), std::pair(&b, "B")})
    if (run->tasks.contains("training") && run->texts.empty())
      notes.push_back(fmt::format("{} does not tell what data it was trained on", side));
  if (!a.precision.empty() && !b.precision.empty() && a.precision != b.precision)
    notes.push_back(fmt::format("precision {} and {}", a.precision, b.precision));
  for (const auto& [one, other, side] : {std::tuple(&a, &b, "A"), std::tuple(&b, &a, "B")})
    for (const auto& [task, results] : one->tasks)
      if (!other->tasks.contains(task)) notes.push_back(fmt::format("{} in {} alone", task, side));
  return notes;
}

std::vector<Comparison> compare_with_first(std::vector<ResultSet> sides,
                                           const std::vector<Threshold>& thresholds,
                                           const ComparisonOptions& options) {
  std::vector<std::shared_ptr<const ResultSet>> all;
  for (ResultSet& side : sides) all.push_back(std::make_shared<const ResultSet>(std::move(side)));
  std::vector<Comparison> comparisons;
  for (size_t i = 1; i < all.size(); ++i) {
    Comparison comparison{
        all[0], all[i], compare_results(*all[0], *all[i], options), comparison_notes(*all[0], *all[i]), {}};
    comparison.regressions = find_regressions(comparison.rows, thresholds);
    comparisons.push_back(std::move(comparison));
  }
  return comparisons;
}

Threshold parse_threshold(const std::string& text, bool rise, const std::string& option) {
  Threshold threshold;
  threshold.text = text;
  threshold.rise = rise;
  const size_t equals = text.rfind('=');
  const char* const end = text.data() + text.size();
  bool good = equals != std::string::npos && equals > 0;
  if (good) {
    threshold.metric = text.substr(0, equals);
    const auto [stop, error] = std::from_chars(text.data() + equals + 1, end, threshold.allowed);
    threshold.relative = stop + 1 == end && *stop == '%';
    good = error == std::errc() && (stop == end || threshold.relative) && threshold.allowed >= 0 &&
           std::isfinite(threshold.allowed);
    if (threshold.relative) threshold.allowed /= 100;
  }
  if (!good)
    throw bad_input(option, fmt::format("\"{}\"", text), "METRIC=NUMBER or METRIC=NUMBER%, as in acc=0.01");
  return threshold;
}

std::vector<Regression> find_regressions(const std::vector<MetricComparison>& rows,
                                         const std::vector<Threshold>& thresholds) {
  std::vector<Regression> regressions;
  for (const Threshold& threshold : thresholds) {
    bool answered = false;
    for (size_t i = 0; i < rows.size(); ++i) {
      const MetricComparison& row = rows[i];
      if (threshold.metric != row.metric && threshold.metric != row.name()) continue;
      if (!row.a || !row.b) continue;
      answered = true;
      const double worse = threshold.rise ? *row.b - *row.a : *row.a - *row.b;
      const double allowed = threshold.allowed * (threshold.relative ? std::abs(*row.a) : 1.0);
      // 0.5 - 0.48 is more than 0.02 in binary.
      const double rounding = 1e-12 * std::max({1.0, std::abs(*row.a), std::abs(*row.b)});
      if (!(worse <= allowed + rounding)) regressions.push_back({i, threshold});
    }
    if (answered) continue;
    std::vector<std::string> names;
    for (const MetricComparison& row : rows)
      if (row.a && row.b) names.push_back(row.name());
    const std::string near = nearest_name(threshold.metric, names);
    throw bad_input(threshold.rise ? "--max-rise" : "--max-drop", threshold.text,
                    "a metric that both sides have" + (near.empty() ? "" : " (did you mean " + near + "?)"));
  }
  return regressions;
}

}  // namespace satune
