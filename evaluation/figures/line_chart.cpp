#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "evaluation/figures/charts.h"

namespace satune {
namespace {

constexpr double kLeft = 74, kTop = 44, kWidth = 560, kHeight = 280, kBottom = 52, kTextSize = 11;

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  void see(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

/// From values to pixels.
struct Axis {
  std::vector<double> marks;
  double step = 0;
  double low = 0, high = 1;      ///< values at its ends
  double start = 0, length = 0;  ///< pixels; a negative length points up

  /// Ends at the ticks that span the range.
  Axis(Range range, int wanted, double start, double length) : start(start), length(length) {
    if (range.low > range.high) range = {0, 1};
    marks = ticks(range.low, range.high, wanted);
    step = marks[1] - marks[0];
    low = marks.front();
    high = marks.back();
  }
  double place(double value) const { return start + (value - low) / (high - low) * length; }
};

/// Of whole numbers: ends a little beyond the values, so that the first and last keep clear of the frame.
Axis counting_axis(Range range, double start, double length) {
  if (range.low > range.high) range = {0, 1};
  Axis axis(range, 12, start, length);
  axis.marks = ticks(range.low, range.high, 12, 1);
  axis.step = axis.marks[1] - axis.marks[0];
  const double margin = std::max((range.high - range.low) * 0.03, 0.25);
  axis.low = range.low - margin;
  axis.high = range.high + margin;
  std::erase_if(axis.marks, [&](double mark) { return mark < axis.low || mark > axis.high; });
  return axis;
}

void draw_axes(Drawing& drawing, const LineChart& chart, const Axis& x, const Axis& y) {
  const double right = kLeft + kWidth, bottom = kTop + kHeight;
  for (const double mark : y.marks) {
    drawing.add(Polyline{{{kLeft, y.place(mark)}, {right, y.place(mark)}}, kGrid, 1, 0});
    drawing.add(Label{.x = kLeft - 7,
                      .y = y.place(mark),
                      .text = tick_text(mark, y.step),
                      .size = kTextSize,
                      .anchor = TextAnchor::kEnd});
  }
  for (const double mark : x.marks) {
    drawing.add(Polyline{{{x.place(mark), bottom}, {x.place(mark), bottom + 4}}, kInk, 1, 0});
    drawing.add(
        Label{.x = x.place(mark), .y = bottom + 14, .text = tick_text(mark, x.step), .size = kTextSize});
  }
  drawing.add(Polyline{{{kLeft, kTop}, {kLeft, bottom}, {right, bottom}}, kInk, 1, 0});
  drawing.add(Label{.x = kLeft + kWidth / 2, .y = bottom + 36, .text = chart.x_axis, .size = 12});
  drawing.add(Label{.x = 14, .y = kTop + kHeight / 2, .text = chart.y_axis, .size = 12, .vertical = true});
}

void draw_curve(Drawing& drawing, const Curve& curve, size_t index, const Axis& x, const Axis& y) {
  Polyline line{{}, line_colour(index), 2, line_dash(index)};
  for (size_t i = 0; i < curve.x.size(); ++i) {
    if (!std::isfinite(curve.x[i]) || !std::isfinite(curve.y[i])) continue;
    line.points.emplace_back(x.place(curve.x[i]), y.place(curve.y[i]));
    if (curve.discs) drawing.add(Disc{line.points.back().first, line.points.back().second, 3, line.colour});
  }
  drawing.add(std::move(line));
}

void draw_legend(Drawing& drawing, const LineChart& chart) {
  if (chart.curves.size() < 2) return;
  double y = kTop + kHeight + kBottom + 8;
  for (size_t i = 0; i < chart.curves.size(); ++i, y += 16) {
    drawing.add(Polyline{{{kLeft, y}, {kLeft + 28, y}}, line_colour(i), 2, line_dash(i)});
    drawing.add(Label{.x = kLeft + 36,
                      .y = y,
                      .text = chart.curves[i].name,
                      .size = kTextSize,
                      .anchor = TextAnchor::kStart});
  }
}

}  // namespace

std::vector<double> ticks(double low, double high, int wanted, double smallest_step) {
  if (!(high > low)) {
    const double margin = low == 0 ? 1 : std::abs(low) * 0.1;
    low -= margin;
    high += margin;
  }
  const double rough = (high - low) / wanted, power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  const auto allowed = [&](double candidate) {  // a multiple of the smallest
    return smallest_step == 0 || std::abs(std::remainder(candidate, smallest_step)) < 1e-9 * smallest_step;
  };
  for (const double times : {5.0, 2.5, 2.0, 1.0})
    if (times * power >= rough * (1 - 1e-9) && allowed(times * power)) step = times * power;
  step = std::max(step, smallest_step);
  std::vector<double> marks;
  const auto first = static_cast<int64_t>(std::floor(low / step + 1e-9)),
             last = static_cast<int64_t>(std::ceil(high / step - 1e-9));
  for (int64_t i = first; i <= last; ++i) marks.push_back(static_cast<double>(i) * step);
  return marks;
}

std::string tick_text(double value, double step) {
  if (std::abs(value) < step * 1e-9) return "0";
  if (std::abs(value) >= 1e6 || step < 1e-5) return fmt::format("{:.3g}", value);
  int decimals = 0;
  for (double scaled = step; decimals < 6 && std::abs(scaled - std::round(scaled)) > 1e-6 * scaled;
       scaled *= 10)
    ++decimals;
  return fmt::format("{:.{}f}", value, decimals);
}

Drawing draw(const LineChart& chart) {
  Range x_range, y_range;
  for (const Curve& curve : chart.curves)
    for (size_t i = 0; i < curve.x.size(); ++i) {
      if (!std::isfinite(curve.y[i])) continue;
      x_range.see(curve.x[i]);
      y_range.see(curve.y[i]);
    }
  for (const double level : chart.level_lines) y_range.see(level);
  const Axis x = counting_axis(x_range, kLeft, kWidth), y(y_range, 6, kTop + kHeight, -kHeight);
  Drawing drawing;
  drawing.title = chart.title;
  drawing.description = chart.description;
  drawing.width = static_cast<int>(kLeft + kWidth + 26);
  const double legend = chart.curves.size() < 2 ? 0 : 16.0 * static_cast<double>(chart.curves.size()) + 6;
  drawing.height = static_cast<int>(kTop + kHeight + kBottom + legend);
  drawing.add(Label{.x = 12, .y = 18, .text = chart.title, .size = 14, .anchor = TextAnchor::kStart});
  draw_axes(drawing, chart, x, y);
  for (const double level : chart.level_lines)
    drawing.add(Polyline{{{kLeft, y.place(level)}, {kLeft + kWidth, y.place(level)}}, kFaintInk, 1.5, 4});
  for (size_t i = 0; i < chart.curves.size(); ++i) draw_curve(drawing, chart.curves[i], i, x, y);
  draw_legend(drawing, chart);
  return drawing;
}

}  // namespace satune
