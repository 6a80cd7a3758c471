// A report as one HTML file: styles and figures inside, no script, nothing fetched.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "evaluation/figures/drawing.h"

namespace satune {

struct HtmlTable {
  std::string caption;
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;  ///< the first cell of a row names it; the others are set right
};

class HtmlPage {
 public:
  explicit HtmlPage(std::string title) : title_(std::move(title)) {}

  /// Texts are escaped.
  void heading(std::string_view text);
  void subheading(std::string_view text);
  void paragraph(std::string_view text);
  void figure(const Drawing& drawing);
  void table(const HtmlTable& table);
  /// Text with line breaks of its own, under a label.
  void quotation(std::string_view label, std::string_view text);

  /// `head`: markup for the end of <head>.
  std::string text(std::string_view head = {}) const;
  /// What stands below the title, inside <main>.
  const std::string& body() const { return body_; }

 private:
  std::string title_, body_;
};

}  // namespace satune
