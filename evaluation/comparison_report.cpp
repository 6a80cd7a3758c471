#include "evaluation/comparison_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace satune {
namespace {

std::string value_text(double value, const std::optional<double>& error) {
  return error ? fmt::format("{:.6g} \xC2\xB1 {:.2g}", value, *error) : fmt::format("{:.6g}", value);
}

Json optional_json(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json row_json(const MetricComparison& row) {
  Json json = {{"metric", row.name()}, {"a", row.a}, {"b", row.b}, {"difference", row.difference()}};
  json["a_stderr"] = optional_json(row.a_stderr);
  json["b_stderr"] = optional_json(row.b_stderr);
  json["paired_items"] = row.paired_items;
  if (row.paired_items > 0) {
    json["difference_stderr"] = optional_json(row.paired_stderr);
    json["difference_95"] = {*row.low, *row.high};
    if (row.mcnemar_p) json["mcnemar_p"] = *row.mcnemar_p;
  }
  return json;
}

bool is_regression(const Comparison& comparison, size_t row) {
  return std::any_of(comparison.regressions.begin(), comparison.regressions.end(),
                     [&](const Regression& regression) { return regression.row == row; });
}

bool lower_is_better(const std::string& metric) {
  return metric.find("loss") != std::string::npos || metric.find("perplexity") != std::string::npos;
}

/// One side on the way to the Pareto front: both numbers as costs.
struct Candidate {
  std::string name;
  double metric = 0, cost = 0, kv_bytes = 0;
};

/// Displayed characters of UTF-8 text.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string padded(const std::string& text, size_t width, bool left) {
  const std::string space(width - std::min(width, width_of(text)), ' ');
  return left ? text + space : space + text;
}

}  // namespace

Json comparison_json(const std::vector<Comparison>& comparisons) {
  Json json = Json::array();
  for (const Comparison& comparison : comparisons) {
    Json rows = Json::array(), regressions = Json::array();
    for (const MetricComparison& row : comparison.rows) rows.push_back(row_json(row));
    for (const Regression& regression : comparison.regressions)
      regressions.push_back({{"metric", comparison.rows[regression.row].name()},
                             {"threshold", (regression.threshold.rise ? "--max-rise " : "--max-drop ") +
                                               regression.threshold.text}});
    json.push_back({{"a", comparison.a.name},
                    {"b", comparison.b.name},
                    {"metrics", rows},
                    {"regressions", regressions}});
  }
  return {{"comparisons", json}};
}

HtmlTable comparison_table(const Comparison& comparison) {
  HtmlTable table{
      fmt::format("A: {}; B: {}. \xC2\xB1 is a standard error; the interval is that of B - A over the same "
                  "items (paired bootstrap), p that of McNemar's exact test.",
                  comparison.a.name, comparison.b.name),
      {"metric", "A", "B", "B - A", "95 % interval", "p", ""},
      {}};
  for (size_t i = 0; i < comparison.rows.size(); ++i) {
    const MetricComparison& row = comparison.rows[i];
    table.rows.push_back({row.name(), value_text(row.a, row.a_stderr), value_text(row.b, row.b_stderr),
                          value_text(row.difference(), row.paired_stderr),
                          row.low ? fmt::format("{:.4g} to {:.4g}", *row.low, *row.high) : "-",
                          row.mcnemar_p ? fmt::format("{:.3g}", *row.mcnemar_p) : "-",
                          is_regression(comparison, i) ? "regression" : ""});
  }
  return table;
}

HtmlTable pareto_table(const std::vector<Comparison>& comparisons) {
  if (comparisons.empty() || comparisons.front().rows.empty() ||
      comparisons.front().rows.front().task.empty())
    return {};
  const MetricComparison& first = comparisons.front().rows.front();
  const double sign = lower_is_better(first.metric) ? 1 : -1;
  const auto candidate = [&](const ResultSet& side, double metric) {
    return Candidate{side.name, metric, sign * metric,
                     side.measurements.value("kv_cache_bytes_per_token", std::nan(""))};
  };
  std::vector<Candidate> sides = {candidate(comparisons.front().a, first.a)};
  for (const Comparison& comparison : comparisons)
    for (const MetricComparison& row : comparison.rows)
      if (row.name() == first.name()) sides.push_back(candidate(comparison.b, row.b));
  HtmlTable table{
      fmt::format("{} against the KV cache: on the Pareto front are those that no other beats in both.",
                  first.name()),
      {"results", first.name(), "KV bytes a token", "Pareto front"},
      {}};
  for (const Candidate& side : sides) {
    if (!(side.kv_bytes >= 0)) return {};
    const bool beaten = std::any_of(sides.begin(), sides.end(), [&](const Candidate& other) {
      return other.cost <= side.cost && other.kv_bytes <= side.kv_bytes &&
             (other.cost < side.cost || other.kv_bytes < side.kv_bytes);
    });
    table.rows.push_back({side.name, fmt::format("{:.6g}", side.metric), fmt::format("{:.0f}", side.kv_bytes),
                          beaten || !std::isfinite(side.cost) ? "" : "yes"});
  }
  return table;
}

std::string comparison_page(const std::vector<Comparison>& comparisons) {
  HtmlPage page("Comparison");
  size_t regressions = 0;
  for (const Comparison& comparison : comparisons) regressions += comparison.regressions.size();
  page.paragraph(regressions == 0 ? "No threshold is exceeded."
                                  : fmt::format("{} thresholds are exceeded.", regressions));
  for (const Comparison& comparison : comparisons) {
    page.heading(comparison.b.name + " against " + comparison.a.name);
    page.table(comparison_table(comparison));
  }
  if (comparisons.size() > 1) {
    const HtmlTable pareto = pareto_table(comparisons);
    if (!pareto.rows.empty()) {
      page.heading("Quality and cost");
      page.table(pareto);
    }
  }
  return page.text();
}

std::string table_text(const HtmlTable& table) {
  std::vector<size_t> widths;
  for (const std::string& column : table.columns) widths.push_back(width_of(column));
  for (const auto& row : table.rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  std::string text;
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string out;
    for (size_t i = 0; i < cells.size(); ++i) out += "  " + padded(cells[i], widths[i], i == 0);
    out.erase(out.find_last_not_of(' ') + 1);
    text += out + "\n";
  };
  line(table.columns);
  for (const auto& row : table.rows) line(row);
  return text;
}

}  // namespace satune
