#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "evaluation/figures/charts.h"

namespace satune {
namespace {

constexpr double kTop = 44, kBottom = 46, kScaleWidth = 14, kRight = 78, kTextSize = 11, kAxisSize = 12;

double text_width(const std::string& text, double size) {
  return static_cast<double>(text.size()) * size * 0.62;
}

/// Enough room for a number in a cell, less where there are many; for the names of the axes where there are
/// few.
double cell_size(const Heatmap& heatmap, size_t rows, size_t columns) {
  if (rows == 0 || columns == 0) return 40;
  const double usual = std::clamp(620.0 / static_cast<double>(std::max(rows, columns)), 8.0, 40.0);
  return std::max({usual, text_width(heatmap.row_axis, kAxisSize) / static_cast<double>(rows),
                   text_width(heatmap.column_axis, kAxisSize) / static_cast<double>(columns)});
}

std::pair<double, double> value_range(const Heatmap& heatmap) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& row : heatmap.values)
    for (const double value : row) {
      if (!std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  if (low > high) low = high = 0;
  low = heatmap.low.value_or(low);
  high = heatmap.high.value_or(high);
  return {low, high > low ? high : low + 1};
}

/// Every n-th name, so that they do not touch.
size_t name_step(double cell, double needed) {
  return std::max<size_t>(1, static_cast<size_t>(std::ceil(needed / cell)));
}

/// "first shared layer 3, last shared layer 5: 0.1234"
std::string cell_tip(const Heatmap& heatmap, size_t row, size_t column) {
  if (heatmap.row_names.empty() || heatmap.column_names.empty()) return "";
  return fmt::format("{} {}, {} {}: {:.4g}", heatmap.row_axis, heatmap.row_names[row], heatmap.column_axis,
                     heatmap.column_names[column], heatmap.values[row][column]);
}

void draw_cells(Drawing& drawing, const Heatmap& heatmap, double left, double cell, double low, double high) {
  for (size_t r = 0; r < heatmap.values.size(); ++r)
    for (size_t c = 0; c < heatmap.values[r].size(); ++c) {
      const double value = heatmap.values[r][c];
      const double x = left + static_cast<double>(c) * cell, y = kTop + static_cast<double>(r) * cell;
      const Colour colour = viridis((value - low) / (high - low));
      const std::string text = fmt::format("{:.{}f}", value, heatmap.decimals);
      drawing.add(Rectangle{x, y, cell - (cell >= 16), cell - (cell >= 16), colour,
                            std::isfinite(value) ? cell_tip(heatmap, r, c) : ""});
      if (std::isfinite(value) && text_width(text, 10) <= cell - 2)
        drawing.add(Label{
            .x = x + cell / 2, .y = y + cell / 2, .text = text, .size = 10, .colour = readable_on(colour)});
    }
}

void draw_names(Drawing& drawing, const Heatmap& heatmap, double left, double cell, double bottom) {
  const size_t row_step = name_step(cell, 13);
  for (size_t r = 0; r < heatmap.row_names.size(); r += row_step)
    drawing.add(Label{.x = left - 6,
                      .y = kTop + (static_cast<double>(r) + 0.5) * cell,
                      .text = heatmap.row_names[r],
                      .size = kTextSize,
                      .anchor = TextAnchor::kEnd});
  double widest = 0;
  for (const std::string& name : heatmap.column_names) widest = std::max(widest, text_width(name, kTextSize));
  const size_t column_step = name_step(cell, widest + 4);
  for (size_t c = 0; c < heatmap.column_names.size(); c += column_step)
    drawing.add(Label{.x = left + (static_cast<double>(c) + 0.5) * cell,
                      .y = bottom + 12,
                      .text = heatmap.column_names[c],
                      .size = kTextSize});
}

void draw_scale(Drawing& drawing, double x, double top, double bottom, double low, double high) {
  constexpr int kSteps = 64;
  const double step = (bottom - top) / kSteps;
  for (int i = 0; i < kSteps; ++i)
    drawing.add(Rectangle{x, bottom - (i + 1) * step, kScaleWidth, step + 0.5, viridis((i + 0.5) / kSteps)});
  const std::vector<double> values = ticks(low, high, bottom - top > 120 ? 5 : 2);
  for (const double value : values) {
    if (value < low - 1e-12 || value > high + 1e-12) continue;
    const double y = bottom - (value - low) / (high - low) * (bottom - top);
    drawing.add(Polyline{{{x + kScaleWidth, y}, {x + kScaleWidth + 4, y}}, kInk, 1, 0});
    drawing.add(Label{.x = x + kScaleWidth + 7,
                      .y = y,
                      .text = tick_text(value, values[1] - values[0]),
                      .size = kTextSize,
                      .anchor = TextAnchor::kStart});
  }
}

}  // namespace

Drawing draw(const Heatmap& heatmap) {
  const size_t rows = heatmap.values.size(), columns = rows == 0 ? 0 : heatmap.values[0].size();
  const double cell = cell_size(heatmap, rows, columns);
  double names = 0;
  for (const std::string& name : heatmap.row_names) names = std::max(names, text_width(name, kTextSize));
  const double left = 36 + names, right = left + static_cast<double>(columns) * cell,
               bottom = kTop + static_cast<double>(rows) * cell;
  const auto [low, high] = value_range(heatmap);
  Drawing drawing;
  drawing.title = heatmap.title;
  drawing.description = heatmap.description;
  drawing.width = static_cast<int>(std::max(right + kRight, 40 + text_width(heatmap.title, 14)));
  drawing.height = static_cast<int>(bottom + kBottom);
  drawing.add(Label{.x = 12, .y = 18, .text = heatmap.title, .size = 14, .anchor = TextAnchor::kStart});
  draw_cells(drawing, heatmap, left, cell, low, high);
  draw_names(drawing, heatmap, left, cell, bottom);
  drawing.add(
      Label{.x = (left + right) / 2, .y = bottom + 32, .text = heatmap.column_axis, .size = kAxisSize});
  drawing.add(Label{
      .x = 14, .y = (kTop + bottom) / 2, .text = heatmap.row_axis, .size = kAxisSize, .vertical = true});
  draw_scale(drawing, right + 14, kTop, std::max(bottom, kTop + 20), low, high);
  return drawing;
}

}  // namespace satune
