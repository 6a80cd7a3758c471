#include "evaluation/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "data/files/error.h"
#include "evaluation/paired_tests.h"

namespace satune {
namespace {

/// null stands for a number that is not finite.
bool is_value(const Json& value) {
  return value.is_number() || value.is_null();
}

double number(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::optional<double> error_of(const Json& metrics, const std::string& metric) {
  const auto it = metrics.find(metric + "_stderr");
  return it != metrics.end() && it->is_number() ? std::optional(it->get<double>()) : std::nullopt;
}

/// What counts items describes the data and is no result.
bool describes_data(std::string_view metric) {
  return metric == "n" || metric == "tokens" || metric == "over_length" || metric == "step";
}

/// The items that both have under one fingerprint.
struct CommonItems {
  const ItemResults* a = nullptr;
  const ItemResults* b = nullptr;
};

CommonItems common_items(const std::string& task, const ResultSet& a, const ResultSet& b) {
  const TaskResults &of_a = a.tasks.at(task), &of_b = b.tasks.at(task);
  for (const auto& [fingerprint, items] : of_a.items) {
    const auto it = of_b.items.find(fingerprint);
    if (it != of_b.items.end()) return {&items, &it->second};
  }
  const std::string where = fmt::format("{}: task {}", b.name, task);
  if (!of_a.items.empty() && !of_b.items.empty())
    throw bad_input(where, "fingerprint " + of_b.items.begin()->first.substr(0, 12),
                    fmt::format("{}, that of {}: the same data, template and tokenizer",
                                of_a.items.begin()->first.substr(0, 12), a.name));
  for (const char* key : {"n", "tokens", "over_length"})
    if (of_a.metrics.contains(key) && of_b.metrics.contains(key) && of_a.metrics[key] != of_b.metrics[key])
      throw bad_input(where, fmt::format("{} {}", key, of_b.metrics[key].dump()),
                      fmt::format("{} as in {}: the same data, template and tokenizer",
                                  of_a.metrics[key].dump(), a.name));
  return {};
}

std::vector<PairedItem> pair_items(const CommonItems& items, const std::string& metric) {
  std::vector<PairedItem> pairs;
  if (items.a == nullptr) return pairs;
  for (const auto& [item, result] : *items.a) {
    const auto other = items.b->find(item);
    if (other == items.b->end()) return {};
    const std::optional<ItemValue> of_a = item_value(result, metric),
                                   of_b = item_value(other->second, metric);
    if (!of_a || !of_b) return {};
    pairs.push_back({of_a->value, of_b->value, of_a->weight, of_b->weight});
  }
  return pairs;
}

void add_tests(MetricComparison& row, const std::vector<PairedItem>& pairs,
               const ComparisonOptions& options) {
  if (pairs.empty()) return;
  row.paired_items = static_cast<int64_t>(pairs.size());
  RandomStream random(options.seed, "paired bootstrap " + row.name());
  const PairedDifference difference = paired_bootstrap(pairs, options.resamples, random);
  row.paired_stderr = difference.standard_error;
  row.low = difference.low;
  row.high = difference.high;
  int64_t only_a = 0, only_b = 0;
  const bool right_or_wrong = std::all_of(pairs.begin(), pairs.end(), [&](const PairedItem& pair) {
    only_a += pair.a > pair.b;
    only_b += pair.b > pair.a;
    return (pair.a == 0 || pair.a == 1) && (pair.b == 0 || pair.b == 1) && pair.weight_a == 1 &&
           pair.weight_b == 1;
  });
  if (right_or_wrong && row.metric != "loss") row.mcnemar_p = mcnemar_p_value(only_a, only_b);
}

/// The metrics of a task, and below `prefix` those of its parts (MMLU's subjects: "subjects.anatomy.acc").
void compare_metrics(const std::string& task, const std::string& prefix, const Json& of_a, const Json& of_b,
                     std::vector<MetricComparison>& rows) {
  for (const auto& [metric, value] : of_a.items()) {
    const auto other = of_b.find(metric);
    if (other == of_b.end()) continue;
    if (value.is_object() && other->is_object())
      compare_metrics(task, prefix + metric + ".", value, *other, rows);
    if (!is_value(value) || !is_value(*other)) continue;
    if (metric.ends_with("_stderr") || describes_data(metric)) continue;
    MetricComparison row{task, prefix + metric, number(value), number(*other)};
    row.a_stderr = error_of(of_a, metric);
    row.b_stderr = error_of(of_b, metric);
    rows.push_back(std::move(row));
  }
}

void compare_task(const std::string& task, const ResultSet& a, const ResultSet& b,
                  const ComparisonOptions& options, std::vector<MetricComparison>& rows) {
  const CommonItems items = common_items(task, a, b);
  const size_t first = rows.size();
  compare_metrics(task, "", a.tasks.at(task).metrics, b.tasks.at(task).metrics, rows);
  for (size_t i = first; i < rows.size(); ++i) add_tests(rows[i], pair_items(items, rows[i].metric), options);
}

/// Throws BadInput where it is certain that the two were not measured on the same.
void check_same_ground(const ResultSet& a, const ResultSet& b) {
  for (const auto& [use, fingerprint] : a.texts) {
    const auto other = b.texts.find(use);
    if (other == b.texts.end() || other->second == fingerprint) continue;
    throw bad_input(fmt::format("{}: {} data", b.name, use), "fingerprint " + other->second.substr(0, 12),
                    fmt::format("{}, that of {}: the same data, template and tokenizer",
                                fingerprint.substr(0, 12), a.name));
  }
  if (a.prompt && b.prompt && a.prompt != b.prompt)
    throw bad_input(b.name + ": prompt", Json(*b.prompt).dump(), "the prompt of " + a.name);
}

}  // namespace

std::vector<MetricComparison> compare_results(const ResultSet& a, const ResultSet& b,
                                              const ComparisonOptions& options) {
  check_same_ground(a, b);
  std::vector<MetricComparison> rows;
  bool common = a.prompt && b.prompt;
  for (const auto& [task, results] : a.tasks) {
    if (!b.tasks.contains(task)) continue;
    common = true;
    compare_task(task, a, b, options, rows);
  }
  if (!common) throw bad_input(b.name, "no task that " + a.name + " has", "one at least in both");
  for (const auto& [key, value] : a.measurements.items())
    if (b.measurements.contains(key)) rows.push_back({"", key, number(value), number(b.measurements[key])});
  return rows;
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
      answered = true;
      const double worse = threshold.rise ? row.b - row.a : row.a - row.b;
      const double allowed = threshold.allowed * (threshold.relative ? std::abs(row.a) : 1.0);
      // 0.5 - 0.48 is more than 0.02 in binary.
      const double rounding = 1e-12 * std::max({1.0, std::abs(row.a), std::abs(row.b)});
      if (!(worse <= allowed + rounding)) regressions.push_back({i, threshold});
    }
    if (answered) continue;
    std::vector<std::string> names;
    for (const MetricComparison& row : rows) names.push_back(row.name());
    const std::string near = nearest_name(threshold.metric, names);
    throw bad_input(threshold.rise ? "--max-rise" : "--max-drop", threshold.text,
                    "a metric that both sides have" + (near.empty() ? "" : " (did you mean " + near + "?)"));
  }
  return regressions;
}

}  // namespace satune
