// The curves of a run: which numbers are shown, what is derived from them, and how many points a page draws.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "evaluation/figures/charts.h"
#include "evaluation/run_report/run_history.h"

namespace satune {

/// A number of the rows as a page shows it.
struct RunMetric {
  std::string key, title, unit;
  double scale = 1;        ///< shown = value * scale
  std::string needs = {};  ///< what a run must have for it; "" = every run has it
};
struct MetricGroup {
  std::string title;
  std::vector<RunMetric> metrics;
};
/// In the order of the page.
const std::vector<MetricGroup>& metric_groups();

/// Energy of one token by row, in joules: what the card of rank 0 drew when the row was written, over the
/// tokens that the step finished a second, times the ranks (`world_size`), which are taken to draw the same.
/// NaN where a row has no power.
std::vector<double> energy_per_token(const StepColumns& rows, int64_t world_size);
/// The key under which a RunMetric asks for it.
inline constexpr const char* kEnergyKey = "energy_per_token_j";

/// Ranks of the run, out of its newest snapshot; 1 where its rows tell of no others; nullopt where they do
/// and no snapshot says how many.
std::optional<int64_t> world_size_of(const RunHistory& run);

/// The metric's numbers by row, scaled; empty where no row has one.
std::vector<double> values_of(const RunHistory& run, const RunMetric& metric);

struct CurveSummary {
  size_t count = 0;  ///< of finite numbers; nothing below means anything without one
  double first = 0, last = 0, low = 0, high = 0, median = 0;
  double first_step = 0, last_step = 0, low_step = 0, high_step = 0;
};
CurveSummary summarise(std::span<const double> steps, std::span<const double> values);

/// At most `most` points (>= 4) of finite values: the first, the last, and the lowest and highest of each of
/// even stretches in between, in their order. No point is made up, and none of the extremes is lost.
Curve thinned(std::string name, std::span<const double> steps, std::span<const double> values, size_t most);

}  // namespace satune
