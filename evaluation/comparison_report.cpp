#include "evaluation/comparison_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace satune {
namespace {

std::string value_text(const std::optional<double>& value, const std::optional<double>& error) {
  if (!value) return "-";
  return error ? fmt::format("{:.6g} \xC2\xB1 {:.2g}", *value, *error) : fmt::format("{:.6g}", *value);
}

Json optional_json(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

Json row_json(const MetricComparison& row) {
  Json json = {{"metric", row.name()},
               {"a", optional_json(row.a)},
               {"b", optional_json(row.b)},
               {"difference", optional_json(row.difference())}};
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

Json pareto_json(const ParetoFront& front) {
  if (front.sides.empty()) return nullptr;
  Json sides = Json::array();
  for (const ParetoSide& side : front.sides) {
    Json values = Json::array();
    for (const auto& value : side.values) values.push_back(optional_json(value));
    sides.push_back({{"name", side.name}, {"values", values}, {"on_front", side.on_front}});
  }
  return {{"metrics", front.metrics}, {"sides", sides}};
}

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

std::string notes_text(const Comparison& comparison) {
  return comparison.notes.empty() ? "" : fmt::format("Mind: {}.", fmt::join(comparison.notes, "; "));
}

Json comparison_json(const std::vector<Comparison>& comparisons, const ParetoFront& front) {
  Json json = Json::array();
  for (const Comparison& comparison : comparisons) {
    Json rows = Json::array(), regressions = Json::array();
    for (const MetricComparison& row : comparison.rows) rows.push_back(row_json(row));
    for (const Regression& regression : comparison.regressions)
      regressions.push_back({{"metric", comparison.rows[regression.row].name()},
                             {"threshold", (regression.threshold.rise ? "--max-rise " : "--max-drop ") +
                                               regression.threshold.text}});
    json.push_back({{"a", comparison.a->name},
                    {"b", comparison.b->name},
                    {"notes", comparison.notes},
                    {"metrics", rows},
                    {"regressions", regressions}});
  }
  return {{"comparisons", json}, {"pareto", pareto_json(front)}};
}

HtmlTable comparison_table(const Comparison& comparison) {
  HtmlTable table{
      fmt::format("A: {}; B: {}. \xC2\xB1 is a standard error; the interval is that of B - A over the same "
                  "items (paired bootstrap), p that of McNemar's exact test. - is not measured.",
                  comparison.a->name, comparison.b->name),
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

std::string comparison_page(const std::vector<Comparison>& comparisons, const ParetoFront& front) {
  HtmlPage page("Comparison");
  size_t regressions = 0;
  for (const Comparison& comparison : comparisons) regressions += comparison.regressions.size();
  page.paragraph(regressions == 0 ? "No threshold is exceeded."
                                  : fmt::format("{} thresholds are exceeded.", regressions));
  for (const Comparison& comparison : comparisons) {
    page.heading(comparison.b->name + " against " + comparison.a->name);
    if (!comparison.notes.empty()) page.paragraph(notes_text(comparison));
    page.table(comparison_table(comparison));
  }
  if (!front.sides.empty()) {
    page.heading("Quality and cost");
    page.table(pareto_table(front));
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
