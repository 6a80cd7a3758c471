#include "evaluation/figures/html_page.h"

#include <fmt/format.h>

namespace satune {
namespace {

constexpr std::string_view kStyle =
    "body{font:16px/1.5 system-ui,'DejaVu Sans',sans-serif;color:#222;background:#fff;max-width:60rem;"
    "margin:2rem auto;padding:0 1rem}"
    "h1{font-size:1.6rem}h2{font-size:1.3rem;margin-top:2.5rem;border-bottom:1px solid #ccc}"
    "h3{font-size:1.05rem;margin-top:1.8rem}"
    "figure{margin:1rem 0;overflow-x:auto}figcaption{color:#555;font-size:.9rem;max-width:45rem}"
    "svg{max-width:100%;height:auto}.scroll{overflow-x:auto}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}"
    "caption{text-align:left;color:#555;padding:.3rem 0}"
    "th,td{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}"
    "th:first-child{text-align:left}thead th{border-bottom:2px solid #888}"
    ".label{color:#555;font-size:.9rem;margin:.6rem 0 0}"
    "pre{font:.85rem/1.4 ui-monospace,'DejaVu Sans Mono',monospace;white-space:pre-wrap;"
    "overflow-wrap:anywhere;background:#f4f4f4;padding:.4rem .7rem;margin:.2rem 0}";

std::string element(std::string_view name, std::string_view text) {
  return fmt::format("<{0}>{1}</{0}>\n", name, escape_markup(text));
}

}  // namespace

void HtmlPage::heading(std::string_view text) {
  body_ += element("h2", text);
}

void HtmlPage::subheading(std::string_view text) {
  body_ += element("h3", text);
}

void HtmlPage::paragraph(std::string_view text) {
  body_ += element("p", text);
}

void HtmlPage::figure(const Drawing& drawing) {
  body_ += "<figure>\n" + to_svg(drawing) + element("figcaption", drawing.description) + "</figure>\n";
}

void HtmlPage::table(const HtmlTable& table) {
  body_ += "<div class=\"scroll\"><table>\n" + element("caption", table.caption) + "<thead><tr>";
  for (const std::string& column : table.columns)
    body_ += fmt::format("<th scope=\"col\">{}</th>", escape_markup(column));
  body_ += "</tr></thead>\n<tbody>\n";
  for (const std::vector<std::string>& row : table.rows) {
    body_ += "<tr>";
    for (size_t i = 0; i < row.size(); ++i)
      body_ += i == 0 ? fmt::format("<th scope=\"row\">{}</th>", escape_markup(row[i]))
                      : fmt::format("<td>{}</td>", escape_markup(row[i]));
    body_ += "</tr>\n";
  }
  body_ += "</tbody></table></div>\n";
}

void HtmlPage::quotation(std::string_view label, std::string_view text) {
  body_ += fmt::format("<p class=\"label\">{}</p>\n", escape_markup(label)) + element("pre", text);
}

std::string HtmlPage::text(std::string_view head) const {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n"
      "<style>{1}</style>\n{3}</head>\n<body>\n<h1>{0}</h1>\n<main>\n{2}</main>\n</body>\n</html>\n",
      escape_markup(title_), kStyle, body_, head);
}

}  // namespace satune
