#include "evaluation/pareto.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "data/files/error.h"

namespace satune {
namespace {

bool lower_is_better(const std::string& metric) {
  for (const char* word : {"loss", "perplexity", "bits", "bytes", "seconds", "joules", "power", "parameters"})
    if (metric.find(word) != std::string::npos) return true;
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

/// One side; a value that is missing or no number is nothing.
struct Candidate {
  std::string name;
  std::vector<std::optional<double>> values, costs;

  bool complete() const {
    return std::all_of(values.begin(), values.end(), [](const auto& value) { return value.has_value(); });
  }
  bool beats(const Candidate& other) const {
    if (!complete()) return false;
    bool better = false;
    for (size_t i = 0; i < costs.size(); ++i) {
      if (*costs[i] > *other.costs[i]) return false;
      better = better || *costs[i] < *other.costs[i];
    }
    return better;
  }
};

Candidate make_candidate(const ResultSet& side, const std::vector<std::string>& wanted) {
  Candidate candidate{side.name, {}, {}};
  const std::vector<Metric> numbers = all_numbers(side);
  for (const std::string& metric : wanted) {
    std::optional<double> value = find_number(numbers, metric);
    if (value && !std::isfinite(*value)) value.reset();
    candidate.values.push_back(value);
    candidate.costs.push_back(value && !lower_is_better(metric) ? std::optional(-*value) : value);
  }
  return candidate;
}

/// Throws BadInput for a metric that no side has.
void check_wanted(const std::vector<Candidate>& sides, const std::vector<std::string>& wanted,
                  const ResultSet& first) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::any_of(sides.begin(), sides.end(), [&](const Candidate& side) { return side.values[i]; }))
      continue;
    std::vector<std::string> names;
    for (const Metric& metric : all_numbers(first)) names.push_back(metric.name);
    const std::string near = nearest_name(wanted[i], names);
    throw bad_input("--pareto " + wanted[i], "a metric that no side has measured",
                    "one of theirs" + (near.empty() ? "" : " (did you mean " + near + "?)"));
  }
}

}  // namespace

HtmlTable pareto_table(const std::vector<Comparison>& comparisons, std::vector<std::string> wanted) {
  if (comparisons.empty()) return {};
  const bool asked = !wanted.empty();
  const ResultSet& first = *comparisons.front().a;
  if (!asked) {
    const MetricComparison& row = comparisons.front().rows.front();
    if (row.task.empty()) return {};
    wanted.push_back(row.name());
  }
  if (wanted.size() < 2) wanted.emplace_back("kv_cache_bytes_per_token");
  std::vector<Candidate> sides = {make_candidate(first, wanted)};
  for (const Comparison& comparison : comparisons) sides.push_back(make_candidate(*comparison.b, wanted));
  const bool measured =
      std::all_of(sides.begin(), sides.end(), [](const Candidate& side) { return side.values.back(); });
  if (!asked && !measured) return {};
  check_wanted(sides, wanted, first);
  HtmlTable table{fmt::format("{}: on the Pareto front are those that no other beats in all of them.",
                              fmt::join(wanted, " against ")),
                  {"results"},
                  {}};
  table.columns.insert(table.columns.end(), wanted.begin(), wanted.end());
  table.columns.emplace_back("Pareto front");
  for (const Candidate& side : sides) {
    std::vector<std::string> row = {side.name};
    for (const auto& value : side.values) row.push_back(value ? fmt::format("{:.6g}", *value) : "-");
    const bool beaten = std::any_of(sides.begin(), sides.end(), [&](const Candidate& other) {
      return side.complete() && other.beats(side);
    });
    row.emplace_back(side.complete() && !beaten ? "yes" : "");
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace satune
