// The kinds of figures in reports: a matrix in colours, curves, and counts by size.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "evaluation/figures/drawing.h"

namespace satune {

/// A matrix in the colours of viridis() with a scale beside it; numbers stand in the cells where they fit.
/// NaN = no value there (grey).
struct Heatmap {
  std::string title = {}, description = {};
  std::string row_axis = {}, column_axis = {};  ///< what the indices count: "layer"
  std::vector<std::string> row_names = {}, column_names = {};
  std::vector<std::vector<double>> values = {};  ///< [rows][columns]
  /// Ends of the scale; default: those of the values. A value beyond has the colour of the end.
  std::optional<double> low = {}, high = {};
  int decimals = 2;  ///< of the numbers in the cells
};
Drawing draw(const Heatmap& heatmap);

struct Curve {
  std::string name;
  std::vector<double> x, y;  ///< points of a NaN are left out
  bool discs = true;         ///< each point is marked; false for curves of so many that marks would merge
};

struct LineChart {
  std::string title = {}, description = {};
  std::string x_axis = {}, y_axis = {};  ///< x counts something: its marks are whole numbers
  std::vector<Curve> curves = {};
  std::vector<double> level_lines = {};  ///< horizontal, dotted: a budget
};
Drawing draw(const LineChart& chart);

/// How many there are of each size.
struct Histogram {
  std::string title = {}, description = {};
  std::string x_axis = {}, y_axis = {};
  double bin_width = 1;             ///< bin i holds sizes in [i * bin_width, (i + 1) * bin_width)
  std::vector<double> counts = {};  ///< by bin
};
Drawing draw(const Histogram& histogram);

/// Round values from at most `low` to at least `high`, about `wanted` of them: 1, 2, 2.5 or 5 times a power
/// of ten apart, a multiple of `smallest_step` where that is given. For low = high around that value.
std::vector<double> ticks(double low, double high, int wanted, double smallest_step = 0);

/// As few digits as tell ticks `step` apart.
std::string tick_text(double value, double step);

}  // namespace satune
