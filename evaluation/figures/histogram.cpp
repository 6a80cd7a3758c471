#include <fmt/format.h>

#include <algorithm>

#include "evaluation/figures/charts.h"

namespace satune {
namespace {

constexpr double kLeft = 74, kTop = 44, kWidth = 560, kHeight = 200, kBottom = 52, kTextSize = 11;

}  // namespace

Drawing draw(const Histogram& histogram) {
  const double bottom = kTop + kHeight,
               bins = static_cast<double>(std::max<size_t>(1, histogram.counts.size()));
  const double most =
      histogram.counts.empty() ? 0 : *std::max_element(histogram.counts.begin(), histogram.counts.end());
  const std::vector<double> marks = ticks(0, std::max(most, 1.0), 5, 1);
  Drawing drawing;
  drawing.title = histogram.title;
  drawing.description = histogram.description;
  drawing.width = static_cast<int>(kLeft + kWidth + 26);
  drawing.height = static_cast<int>(bottom + kBottom);
  drawing.add(Label{.x = 12, .y = 18, .text = histogram.title, .size = 14, .anchor = TextAnchor::kStart});
  for (const double mark : marks) {
    const double y = bottom - mark / marks.back() * kHeight;
    drawing.add(Polyline{{{kLeft, y}, {kLeft + kWidth, y}}, kGrid, 1, 0});
    drawing.add(Label{.x = kLeft - 7,
                      .y = y,
                      .text = tick_text(mark, marks[1] - marks[0]),
                      .size = kTextSize,
                      .anchor = TextAnchor::kEnd});
  }
  for (size_t i = 0; i < histogram.counts.size(); ++i) {
    const double height = histogram.counts[i] / marks.back() * kHeight, low = static_cast<double>(i);
    if (height <= 0) continue;
    // A bin of a single one shows among thousands.
    drawing.add(Rectangle{kLeft + low / bins * kWidth + 0.5, bottom - std::max(height, 1.0),
                          kWidth / bins - 1, std::max(height, 1.0), line_colour(0),
                          fmt::format("{:g} to {:g}: {:g}", low * histogram.bin_width,
                                      (low + 1) * histogram.bin_width - 1, histogram.counts[i])});
  }
  const double end = bins * histogram.bin_width;
  const std::vector<double> sizes = ticks(0, end, 8, 1);
  for (const double size : sizes) {
    if (size > end) continue;
    const double x = kLeft + size / end * kWidth;
    drawing.add(Polyline{{{x, bottom}, {x, bottom + 4}}, kInk, 1, 0});
    drawing.add(
        Label{.x = x, .y = bottom + 14, .text = tick_text(size, sizes[1] - sizes[0]), .size = kTextSize});
  }
  drawing.add(Polyline{{{kLeft, kTop}, {kLeft, bottom}, {kLeft + kWidth, bottom}}, kInk, 1, 0});
  drawing.add(Label{.x = kLeft + kWidth / 2, .y = bottom + 36, .text = histogram.x_axis, .size = 12});
  drawing.add(
      Label{.x = 14, .y = kTop + kHeight / 2, .text = histogram.y_axis, .size = 12, .vertical = true});
  return drawing;
}

}  // namespace satune
