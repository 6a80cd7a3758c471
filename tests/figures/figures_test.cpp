#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "evaluation/figures/charts.h"
#include "evaluation/figures/html_page.h"

namespace satune {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(Colours, ViridisGrowsLighter) {
  EXPECT_EQ(to_hex(viridis(0)), "#440154");
  EXPECT_EQ(to_hex(viridis(1)), "#fde725");
  EXPECT_EQ(viridis(-1), viridis(0));
  EXPECT_EQ(viridis(2), viridis(1));
  double before = -1;
  for (int i = 0; i <= 32; ++i) {
    const Colour colour = viridis(i / 32.0);
    const double lightness = 0.2126 * colour.red + 0.7152 * colour.green + 0.0722 * colour.blue;
    EXPECT_GT(lightness, before) << i;
    before = lightness;
  }
  EXPECT_EQ(readable_on(viridis(0)), (Colour{255, 255, 255}));
  EXPECT_EQ(readable_on(viridis(1)), (Colour{0, 0, 0}));
}

TEST(Charts, TicksAreRoundAndSpanTheRange) {
  EXPECT_THAT(ticks(0, 1, 5), ElementsAre(0, testing::DoubleNear(0.2, 1e-12), testing::DoubleNear(0.4, 1e-12),
                                          testing::DoubleNear(0.6, 1e-12), testing::DoubleNear(0.8, 1e-12),
                                          testing::DoubleNear(1, 1e-12)));
  EXPECT_THAT(ticks(1, 4, 10, 1), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(ticks(1, 24, 10, 1), ElementsAre(0, 5, 10, 15, 20, 25));  // 2.5 is no whole number
  for (const auto& [low, high] :
       {std::pair{-3.7, 12.1}, {0.001, 0.0013}, {5.0, 5.0}, {0.0, 0.0}, {-1e9, 2e9}}) {
    const std::vector<double> marks = ticks(low, high, 6);
    ASSERT_GE(marks.size(), 2U);
    EXPECT_LE(marks.size(), 14U);
    EXPECT_LE(marks.front(), low);
    EXPECT_GE(marks.back(), high);
  }
  EXPECT_EQ(tick_text(0.25, 0.25), "0.25");
  EXPECT_EQ(tick_text(3, 1), "3");
  EXPECT_EQ(tick_text(-0.0, 0.5), "0");
}

TEST(Charts, AHistogramHasABarForEachBinThatHoldsSomething) {
  const Drawing drawing = draw(Histogram{.title = "Lengths",
                                         .description = "All.",
                                         .x_axis = "tokens",
                                         .y_axis = "samples",
                                         .bin_width = 50,
                                         .counts = {3, 0, 1000, 1}});
  std::vector<Rectangle> bars;
  for (const Shape& shape : drawing.shapes)
    if (const auto* bar = std::get_if<Rectangle>(&shape)) bars.push_back(*bar);
  ASSERT_EQ(bars.size(), 3U);
  EXPECT_EQ(bars[0].tip, "0 to 49: 3");
  EXPECT_EQ(bars[1].tip, "100 to 149: 1000");
  EXPECT_DOUBLE_EQ(bars[1].height, 200);
  EXPECT_GE(bars[2].height, 1);  // one among thousands still shows
  EXPECT_LT(bars[1].x + bars[1].width, bars[2].x);
  EXPECT_NO_THROW(to_svg(draw(Histogram{})));
}

TEST(Charts, ACurveOfManyPointsHasNoDiscs) {
  const auto discs = [](bool wanted) {
    const Drawing drawing = draw(LineChart{.curves = {Curve{"a", {1, 2, 3}, {1, std::nan(""), 3}, wanted}}});
    return std::count_if(drawing.shapes.begin(), drawing.shapes.end(),
                         [](const Shape& shape) { return std::holds_alternative<Disc>(shape); });
  };
  EXPECT_EQ(discs(true), 2);
  EXPECT_EQ(discs(false), 0);
}

TEST(Charts, AHeatmapShowsItsNumbersAndSaysWhatItIs) {
  const Drawing drawing = draw(Heatmap{.title = "T < U",
                                       .description = "Two & two.",
                                       .row_axis = "first",
                                       .column_axis = "last",
                                       .row_names = {"0", "1"},
                                       .column_names = {"0", "1"},
                                       .values = {{0.25, 1}, {std::nan(""), 0.5}}});
  const std::string svg = to_svg(drawing);
  EXPECT_THAT(svg, HasSubstr("<title>T &lt; U</title>"));
  EXPECT_THAT(svg, HasSubstr("aria-label=\"T &lt; U. Two &amp; two.\""));
  for (const char* text : {">0.25<", ">1.00<", ">0.50<", ">first<", ">last<"})
    EXPECT_THAT(svg, HasSubstr(text));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, HasSubstr(to_hex(viridis(1.0 / 3))));  // 0.5 between 0.25 and 1
  EXPECT_THAT(svg, HasSubstr("<title>first 0, last 1: 1</title></rect>"));
}

TEST(Charts, NamesOfAxesHaveRoomBesideASingleCell) {
  const Drawing drawing =
      draw(Heatmap{.row_axis = "first shared layer", .column_axis = "last shared layer", .values = {{1}}});
  for (const Shape& shape : drawing.shapes) {
    const auto* label = std::get_if<Label>(&shape);
    if (label == nullptr || !label->vertical) continue;
    EXPECT_EQ(label->text, "first shared layer");
    EXPECT_GT(label->y - static_cast<double>(label->text.size()) * label->size * 0.3, 40);  // below the title
    return;
  }
  ADD_FAILURE() << "no name of the rows";
}

TEST(Charts, ACurveLeavesOutWhatIsNotANumber) {
  const Drawing drawing =
      draw(LineChart{.title = "T",
                     .description = "D",
                     .x_axis = "x",
                     .y_axis = "y",
                     .curves = {{"one", {1, 2, 3}, {1, std::nan(""), 3}}, {"two", {1}, {2}}}});
  const std::string svg = to_svg(drawing);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, HasSubstr(">one<"));
  EXPECT_THAT(svg, HasSubstr(">two<"));
  size_t discs = 0;
  for (size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1)) ++discs;
  EXPECT_EQ(discs, 3U);
}

TEST(Charts, NothingToDrawIsStillAFigure) {
  EXPECT_THAT(to_svg(draw(LineChart{})), HasSubstr("</svg>"));
  EXPECT_EQ(to_png(draw(Heatmap{})).substr(1, 3), "PNG");
}

TEST(HtmlPage, EscapesTextsAndNeedsNothingElse) {
  HtmlPage page("A & B");
  page.heading("<script>");
  page.paragraph("it's \"quoted\"");
  page.figure(draw(Heatmap{.title = "F", .description = "What F shows", .values = {{1}}}));
  page.table({"caption", {"name", "value"}, {{"row", "<1>"}}});
  const std::string text = page.text();
  EXPECT_THAT(text, HasSubstr("<title>A &amp; B</title>"));
  EXPECT_THAT(text, HasSubstr("<h2>&lt;script&gt;</h2>"));
  EXPECT_THAT(text, Not(HasSubstr("<script")));
  EXPECT_THAT(text, HasSubstr("<th scope=\"row\">row</th><td>&lt;1&gt;</td>"));
  EXPECT_THAT(text, HasSubstr("What F shows"));
}

}  // namespace
}  // namespace satune
