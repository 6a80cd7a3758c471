#include "evaluation/pareto.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "data/files/error.h"

namespace satune {
namespace {

/// By the metric's own name: what the task or a part of it is called ("time_questions.acc") says nothing.
bool lower_is_better(std::string_view name) {
  const size_t dot = name.rfind('.');
  const std::string_view metric = dot == std::string_view::npos ? name : name.substr(dot + 1);
  if (metric.ends_with("_saved")) return false;
  for (const char* word :
       {"loss", "perplexity", "bits", "bytes", "seconds", "time_", "joules", "power", "parameters"})
    if (metric.find(word) != std::string_view::npos) return true;
  return false;
}

std::vector<Metric> all_numbers(const ResultSet& side) {
  std::vector<Metric> numbers;
  for (const auto& [task, results] : side.tasks)
    for (Metric& metric : result_metrics(results.metrics)) {
      metric.name = task + "." + metric.name;
      numbers.push_back(std::move(metric));
    }
  for (const auto& [key, value] : side.measurements.items()) numbers.push_back({key, value.get<double>()});
  return numbers;
}

std::optional<double> find_number(const std::vector<Metric>& numbers, const std::string& wanted) {
  const auto find = [&](const auto& fits) -> std::optional<double> {
    const auto it = std::find_if(numbers.begin(), numbers.end(), fits);
    return it != numbers.end() ? std::optional(it->value) : std::nullopt;
  };
  const auto exact = find([&](const Metric& metric) { return metric.name == wanted; });
  return exact ? exact : find([&](const Metric& metric) { return metric.name.ends_with("." + wanted); });
}

ParetoSide make_side(const ResultSet& set, const std::vector<std::string>& wanted) {
  ParetoSide side{set.name, {}, false};
  const std::vector<Metric> numbers = all_numbers(set);
  for (const std::string& metric : wanted) {
    const std::optional<double> value = find_number(numbers, metric);
    side.values.push_back(value && std::isfinite(*value) ? value : std::nullopt);
  }
  return side;
}

bool is_complete(const ParetoSide& side) {
  return std::all_of(side.values.begin(), side.values.end(),
                     [](const auto& value) { return value.has_value(); });
}

/// Both complete.
bool beats(const ParetoSide& one, const ParetoSide& other, const std::vector<std::string>& metrics) {
  bool better = false;
  for (size_t i = 0; i < metrics.size(); ++i) {
    const double sign = lower_is_better(metrics[i]) ? 1 : -1;
    const double cost = sign * *one.values[i], of_other = sign * *other.values[i];
    if (cost > of_other) return false;
    better = better || cost < of_other;
  }
  return better;
}

/// Throws BadInput for a metric that no side has.
void check_wanted(const std::vector<ParetoSide>& sides, const std::vector<std::string>& wanted,
                  const ResultSet& first) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::any_of(sides.begin(), sides.end(),
                    [&](const ParetoSide& side) { return side.values[i].has_value(); }))
      continue;
    std::vector<std::string> names;
    for (const Metric& metric : all_numbers(first)) names.push_back(metric.name);
    const std::string near = nearest_name(wanted[i], names);
    throw bad_input("--pareto " + wanted[i], "a metric that no side has measured",
                    "one of theirs" + (near.empty() ? "" : " (did you mean " + near + "?)"));
  }
}

}  // namespace

ParetoFront find_pareto_front(const std::vector<Comparison>& comparisons, std::vector<std::string> wanted) {
  if (comparisons.empty()) return {};
  const bool asked = !wanted.empty();
  const ResultSet& first = *comparisons.front().a;
  if (!asked) {
    const MetricComparison& row = comparisons.front().rows.front();
    if (row.task.empty()) return {};
    wanted.push_back(row.name());
  }
  if (wanted.size() < 2) wanted.emplace_back("kv_cache_bytes_per_token");
  ParetoFront front{wanted, {make_side(first, wanted)}};
  for (const Comparison& comparison : comparisons) front.sides.push_back(make_side(*comparison.b, wanted));
  if (!asked && !std::all_of(front.sides.begin(), front.sides.end(), is_complete)) return {};
  check_wanted(front.sides, wanted, first);
  for (ParetoSide& side : front.sides)
    side.on_front = is_complete(side) &&
                    std::none_of(front.sides.begin(), front.sides.end(), [&](const ParetoSide& other) {
                      return is_complete(other) && beats(other, side, wanted);
                    });
  return front;
}

HtmlTable pareto_table(const ParetoFront& front) {
  HtmlTable table{fmt::format("{}: on the Pareto front are those that no other beats in all of them.",
                              fmt::join(front.metrics, " against ")),
                  {"results"},
                  {}};
  table.columns.insert(table.columns.end(), front.metrics.begin(), front.metrics.end());
  table.columns.emplace_back("Pareto front");
  for (const ParetoSide& side : front.sides) {
    std::vector<std::string> row = {side.name};
    for (const auto& value : side.values) row.push_back(value ? fmt::format("{:.6g}", *value) : "-");
    row.emplace_back(side.on_front ? "yes" : "");
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace satune
