// Which of several results no other beats in everything that counts.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evaluation/comparison.h"
#include "evaluation/figures/html_page.h"

namespace satune {

struct ParetoSide {
  std::string name;
  std::vector<std::optional<double>> values;  ///< by metric; nothing = not measured, or no number
  bool on_front = false;
};

struct ParetoFront {
  std::vector<std::string> metrics;
  std::vector<ParetoSide> sides;  ///< A, then every B; none = there is no front to show
};

/// Every side of the comparisons with the wanted metrics (TASK.METRIC, METRIC of the first task that has it,
/// or a measurement). A side is on the Pareto front where it has them all and no other is at least as good in
/// each and better in one. Losses, perplexities, bits, bytes, times, joules, watts and parameters are better
/// lower, by the name of the metric alone; all else, and what ends in "_saved", higher. With less than two
/// metrics, kv_cache_bytes_per_token is the other one; with none, the first metric of the first task: then
/// there is no front unless every side has both. Throws BadInput naming --pareto for a metric that no side
/// has.
ParetoFront find_pareto_front(const std::vector<Comparison>& comparisons,
                              std::vector<std::string> wanted = {});

HtmlTable pareto_table(const ParetoFront& front);

}  // namespace satune
