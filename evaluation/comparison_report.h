// A comparison as JSON, as a table and as a page.
#pragma once

#include <string>
#include <vector>

#include "evaluation/comparison.h"
#include "evaluation/figures/html_page.h"

namespace satune {

Json comparison_json(const std::vector<Comparison>& comparisons);

/// Columns: metric, A, B, difference, 95 % interval, p. "-" = not measured.
HtmlTable comparison_table(const Comparison& comparison);

/// "Mind: loss at steps 100 and 200; ..."; "" where there is nothing to mind.
std::string notes_text(const Comparison& comparison);

/// `pareto`: pareto_table(); nothing is shown of an empty one.
std::string comparison_page(const std::vector<Comparison>& comparisons, const HtmlTable& pareto);

/// The table as text for a terminal.
std::string table_text(const HtmlTable& table);

}  // namespace satune
