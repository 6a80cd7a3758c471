#include <fmt/format.h>

#include "evaluation/figures/drawing.h"

namespace satune {
namespace {

/// Shortest text of at most two decimals.
std::string number(double value) {
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text == "-0" ? "0" : text;
}

std::string element(const Rectangle& shape) {
  const std::string tip =
      shape.tip.empty() ? "/>" : fmt::format("><title>{}</title></rect>", escape_markup(shape.tip));
  return fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"{}\n", number(shape.x),
                     number(shape.y), number(shape.width), number(shape.height), to_hex(shape.fill), tip);
}

std::string element(const Polyline& shape) {
  std::string points;
  for (const auto& [x, y] : shape.points) points += (points.empty() ? "" : " ") + number(x) + "," + number(y);
  const std::string dash = shape.dash > 0 ? fmt::format(" stroke-dasharray=\"{0} {0}\"", shape.dash) : "";
  return fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"{}/>\n", points,
                     to_hex(shape.colour), number(shape.width), dash);
}

std::string element(const Disc& shape) {
  return fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{}\"/>\n", number(shape.x), number(shape.y),
                     number(shape.radius), to_hex(shape.fill));
}

std::string element(const Label& label) {
  const char* anchor = label.anchor == TextAnchor::kStart    ? "start"
                       : label.anchor == TextAnchor::kMiddle ? "middle"
                                                             : "end";
  // The baseline, a third of the size below the middle of the capitals.
  const std::string x = number(label.x), y = number(label.y);
  const std::string turn = label.vertical ? fmt::format(" transform=\"rotate(-90 {} {})\"", x, y) : "";
  return fmt::format(
      "<text x=\"{}\" y=\"{}\" dy=\"{}\" font-size=\"{}\" text-anchor=\"{}\" fill=\"{}\"{}>{}</text>\n", x, y,
      number(label.size * 0.35), number(label.size), anchor, to_hex(label.colour), turn,
      escape_markup(label.text));
}

}  // namespace

void Drawing::add(Shape shape) {
  shapes.push_back(std::move(shape));
}

std::string escape_markup(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string to_svg(const Drawing& drawing) {
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "role=\"img\" "
      "aria-label=\"{2}. {3}\" font-family=\"system-ui, 'DejaVu Sans', sans-serif\">\n<title>{2}</title>\n"
      "<desc>{3}</desc>\n<rect width=\"{0}\" height=\"{1}\" fill=\"{4}\"/>\n",
      drawing.width, drawing.height, escape_markup(drawing.title), escape_markup(drawing.description),
      to_hex(kPaper));
  for (const auto& shape : drawing.shapes)
    svg += std::visit([](const auto& each) { return element(each); }, shape);
  return svg + "</svg>\n";
}

}  // namespace satune
