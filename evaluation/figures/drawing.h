// A figure as a list of shapes, written as SVG or painted as PNG: one layout, two files that look alike.
// Lengths are pixels, (0, 0) is the top left corner.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "evaluation/figures/colours.h"

namespace satune {

struct Rectangle {
  double x = 0, y = 0, width = 0, height = 0;
  Colour fill;
  std::string tip = {};  ///< shown beside the pointer by what reads the SVG; "" = none
};

struct Polyline {
  std::vector<std::pair<double, double>> points;
  Colour colour;
  double width = 1;
  int dash = 0;  ///< as line_dash()
};

struct Disc {
  double x = 0, y = 0, radius = 2;
  Colour fill;
};

enum class TextAnchor { kStart, kMiddle, kEnd };

/// `y` is the middle of the line of text. A vertical text reads upwards, anchored along its direction.
struct Label {
  double x = 0, y = 0;
  std::string text;
  double size = 12;
  TextAnchor anchor = TextAnchor::kMiddle;
  Colour colour = kInk;
  bool vertical = false;
};

using Shape = std::variant<Rectangle, Polyline, Disc, Label>;

struct Drawing {
  int width = 0, height = 0;
  std::string title;          ///< shown by no shape: the name for screen readers
  std::string description;    ///< what the figure says, in a sentence or two: its alternative text
  std::vector<Shape> shapes;  ///< in the order they are painted

  /// Compiled apart: g++ 12, where it sees through a variant's move, warns of members that it never reads.
  void add(Shape shape);
};

/// A whole SVG document, with title and description; no script, no reference to anything outside it.
std::string to_svg(const Drawing& drawing);

/// A PNG file, `scale` times as large in pixels. Characters outside ASCII are painted as '?'. Throws
/// std::runtime_error where libpng fails.
std::string to_png(const Drawing& drawing, int scale = 2);

/// `text` for the inside of an element or a quoted attribute of HTML and XML.
std::string escape_markup(std::string_view text);

}  // namespace satune
