// A comparison as JSON, as a table and as a page.
#pragma once

#include <string>
#include <vector>

#include "evaluation/comparison.h"
#include "evaluation/figures/html_page.h"
#include "evaluation/pareto.h"

namespace satune {

/// {"comparisons": [{"a", "b", "notes", "metrics", "regressions"}], "pareto": {"metrics", "sides"} or null}
Json comparison_json(const std::vector<Comparison>& comparisons, const ParetoFront& front);

/// Columns: metric, A, B, difference, 95 % interval, p. "-" = not measured.
HtmlTable comparison_table(const Comparison& comparison);

/// "Mind: loss at steps 100 and 200; ..."; "" where there is nothing to mind.
std::string notes_text(const Comparison& comparison);

std::string comparison_page(const std::vector<Comparison>& comparisons, const ParetoFront& front);

/// The table as text for a terminal.
std::string table_text(const HtmlTable& table);

}  // namespace satune
