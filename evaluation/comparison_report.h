// A comparison as JSON, as a table and as a page.
#pragma once

#include <string>
#include <vector>

#include "evaluation/comparison.h"
#include "evaluation/figures/html_page.h"

namespace satune {

/// B against A.
struct Comparison {
  ResultSet a, b;
  std::vector<MetricComparison> rows;
  std::vector<Regression> regressions;
};

Json comparison_json(const std::vector<Comparison>& comparisons);

/// Columns: metric, A, B, difference, 95 % interval, p.
HtmlTable comparison_table(const Comparison& comparison);

/// Of a sweep or of several files: every side with its first metric and what it costs. A side is on the
/// Pareto front where no other is at least as good in the metric and in KV bytes and better in one. Empty
/// where a side lacks either. Losses and perplexities are better lower, other metrics higher.
HtmlTable pareto_table(const std::vector<Comparison>& comparisons);

std::string comparison_page(const std::vector<Comparison>& comparisons);

/// The table as text for a terminal.
std::string table_text(const HtmlTable& table);

}  // namespace satune
