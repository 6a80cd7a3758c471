#include "evaluation/benchmark_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/utf8.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

/// What lm-eval makes of a HellaSwag text: brackets are left over from WikiHow.
std::string clean_hellaswag(std::string_view raw) {
  std::string text = replace_all(std::string(trim_white_space(raw)), " [title]", ". ");
  for (size_t open = 0; (open = text.find('[', open)) != std::string::npos;) {
    const size_t close = text.find(']', open), line_end = text.find('\n', open);
    if (close == std::string::npos || line_end < close) {
      ++open;
    } else {
      text.erase(open, close + 1 - open);
    }
  }
  return replace_all(std::move(text), "  ", " ");
}

/// Python's str.capitalize() for ASCII, Latin-1, Greek and Cyrillic: the first letter large, all others
/// small.
std::string capitalize(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    const bool first = i == 0;
    if (first && c >= 'a' && c <= 'z') {
      out += static_cast<char>(c - 32);
    } else if (!first && c >= 'A' && c <= 'Z') {
      out += static_cast<char>(c + 32);
    } else if (c >= 0xC3 && c <= 0xD1 && i + 1 < text.size()) {  // two bytes
      uint32_t point = (c & 0x1FU) << 6 | (static_cast<unsigned char>(text[++i]) & 0x3FU);
      const auto in = [&](uint32_t low, uint32_t high) { return point >= low && point <= high; };
      const auto shift = [&](uint32_t large, uint32_t last, uint32_t distance, uint32_t gap) {
        if (first && in(large + distance, last + distance) && point != gap + distance)
          point -= distance;
        else if (!first && in(large, last) && point != gap)
          point += distance;
      };
      if (point < 0x100)
        shift(0xC0, 0xDE, 0x20, 0xD7);
      else if (in(0x391, 0x3C9))
        shift(0x391, 0x3A9, 0x20, 0x3A2);
      else if (in(0x410, 0x44F))
        shift(0x410, 0x42F, 0x20, 0);
      out += static_cast<char>(0xC0 | point >> 6);
      out += static_cast<char>(0x80 | (point & 0x3F));
    } else {
      out += static_cast<char>(c);
    }
  }
  return out;
}

}  // namespace

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

std::string fill_template(std::string_view text, const DataRow& row, std::string_view where) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] == '{' || text[i] == '}') && i + 1 < text.size() && text[i + 1] == text[i]) {
      out += text[i++];
    } else if (text[i] == '{') {
      const size_t end = text.find_first_of("{}", i + 1);
      if (end == std::string_view::npos || text[end] == '{')
        throw bad_input(where, quote_json(text.substr(i)), "a } after each {");
      const std::string_view key = text.substr(i + 1, end - i - 1);
      const auto found = row.fields.find(key);
      if (found != row.fields.end() && found->is_number()) {
        out += found->dump();
      } else {
        out += string_field(row, key);
      }
      i = end;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::vector<BenchmarkDocument> read_hellaswag(const fs::path& file) {
  std::vector<BenchmarkDocument> documents;
  for (const DataRow& row : read_data_rows(file)) {
    BenchmarkDocument document;
    document.text =
        clean_hellaswag(fmt::format("{}: {} {}", string_field(row, "activity_label"),
                                    string_field(row, "ctx_a"), capitalize(string_field(row, "ctx_b"))));
    for (const std::string& ending : strings_field(row, "endings", 4))
      document.choices.push_back(clean_hellaswag(ending));
    document.gold = index_field(row, "label", 4);
    document.where = row.where;
    document.row = hash_row(row);
    documents.push_back(std::move(document));
  }
  return documents;
}

std::vector<BenchmarkDocument> read_gsm8k(const fs::path& file) {
  std::vector<BenchmarkDocument> documents;
  for (const DataRow& row : read_data_rows(file))
    documents.push_back({fill_template("Question: {question}\nAnswer:", row),
                         {},
                         0,
                         string_field(row, "answer"),
                         row.where,
                         0});
  return documents;
}

}  // namespace satune
