#include "evaluation/data_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <functional>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/utf8.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

using Row = std::vector<std::string>;

struct Packing {
  std::string_view ending, program;
};
constexpr Packing kPackings[] = {{".gz", "gunzip"}, {".bz2", "bunzip2"}, {".xz", "unxz"}, {".zst", "unzstd"}};

[[noreturn]] void refuse_packed(const fs::path& path, std::string_view program) {
  throw bad_input(path.string(), "a compressed file",
                  fmt::format("the unpacked one: {} -k {}", program, path.string()));
}

std::string_view without_mark(std::string_view text) {
  return text.starts_with("\xEF\xBB\xBF") ? text.substr(3) : text;
}

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

/// A table's rows with the line each begins at.
struct Table {
  std::vector<Row> rows;
  std::vector<size_t> lines;
};

Table read_tsv(std::string_view text) {
  Table table;
  size_t number = 0;
  for (const std::string_view line : lines_of(text)) {
    ++number;
    if (line.empty()) continue;
    Row row;
    for (size_t begin = 0; begin <= line.size();) {
      const size_t end = std::min(line.find('\t', begin), line.size());
      row.emplace_back(line.substr(begin, end - begin));
      begin = end + 1;
    }
    table.rows.push_back(std::move(row));
    table.lines.push_back(number);
  }
  return table;
}

/// One record of a CSV from `at` on, which moves behind it.
Row read_csv_record(std::string_view text, size_t& at, size_t& line, const std::string& where) {
  Row row(1);
  const size_t first = line;
  while (at < text.size()) {
    if (text[at] == '"' && row.back().empty()) {
      for (++at;; ++at) {
        if (at >= text.size())
          throw bad_input(fmt::format("{}: line {}", where, first), "a quote that is never closed",
                          "its end");
        if (text[at] == '"' && !(at + 1 < text.size() && text[at + 1] == '"')) break;
        if (text[at] == '"') ++at;
        line += text[at] == '\n';
        row.back() += text[at];
      }
      ++at;
    }
    const char c = at < text.size() ? text[at++] : '\n';
    if (c == '\n') {
      ++line;
      break;
    }
    if (c == ',') {
      row.emplace_back();
    } else if (!(c == '\r' && (at >= text.size() || text[at] == '\n'))) {
      row.back() += c;
    }
  }
  return row;
}

Table read_csv(std::string_view text, const std::string& where) {
  Table table;
  size_t line = 1;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = line;
    Row row = read_csv_record(text, at, line, where);
    if (row.size() == 1 && row[0].empty()) continue;  // an empty line
    table.rows.push_back(std::move(row));
    table.lines.push_back(begin);
  }
  return table;
}

std::vector<DataRow> name_fields(Table table, Row header, const std::string& where, int64_t* short_rows) {
  size_t first = 0;
  if (header.empty() && !table.rows.empty()) header = table.rows[first++];
  std::vector<DataRow> rows;
  for (size_t i = first; i < table.rows.size(); ++i) {
    DataRow row{Json::object(), fmt::format("{}: line {}", where, table.lines[i])};
    if (short_rows != nullptr && table.rows[i].size() < header.size()) {
      ++*short_rows;
      continue;
    }
    if (table.rows[i].size() != header.size())
      throw bad_input(row.where, fmt::format("{} fields", table.rows[i].size()),
                      fmt::format("{}, one for each column", header.size()));
    for (size_t k = 0; k < header.size(); ++k) row.fields[header[k]] = std::move(table.rows[i][k]);
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<DataRow> read_json_rows(std::string_view text, const std::string& where) {
  std::vector<DataRow> rows;
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin != std::string_view::npos && text[begin] == '[') {
    for (Json& value : parse_json(text, where))
      rows.push_back({std::move(value), fmt::format("{}: record {}", where, rows.size() + 1)});
  } else {
    size_t number = 0;
    for (const std::string_view line : lines_of(text)) {
      ++number;
      if (trim_white_space(line).empty()) continue;
      const std::string place = fmt::format("{}: line {}", where, number);
      rows.push_back({parse_json(line, where, {.line = number}), place});
    }
  }
  for (const DataRow& row : rows)
    if (!row.fields.is_object()) throw bad_input(row.where, describe_json(&row.fields), "an object");
  return rows;
}

}  // namespace

std::vector<DataRow> read_data_rows(const fs::path& path, const std::vector<std::string>& columns,
                                    int64_t* short_rows) {
  const std::string where = path.string(), ending = path.extension().string();
  for (const Packing& packing : kPackings)
    if (ending == packing.ending) refuse_packed(path, packing.program);
  if (ending == ".parquet")
    throw bad_input(where, "a Parquet file",
                    "JSON lines, as Dataset.to_json() of the datasets library writes");
  const MappedFile file(path);
  if (const auto bad = find_invalid_utf8(file.text()))
    throw bad_input(where, fmt::format("a byte at offset {} that is not UTF-8", *bad), "UTF-8 text");
  const std::string_view text = without_mark(file.text());
  std::vector<DataRow> rows;
  if (ending == ".json" || ending == ".jsonl") {
    rows = read_json_rows(text, where);
  } else if (ending == ".tsv") {
    rows = name_fields(read_tsv(text), columns, where, short_rows);
  } else if (ending == ".csv") {
    rows = name_fields(read_csv(text, where), columns, where, short_rows);
  } else {
    throw bad_input(where, "the ending \"" + ending + "\"", ".json, .jsonl, .tsv or .csv");
  }
  if (rows.empty()) throw bad_input(where, "no row", "at least one");
  return rows;
}

fs::path find_data_file(const fs::path& folder, const std::vector<std::string>& stems) {
  for (const std::string& stem : stems)
    for (const char* ending : {".jsonl", ".json", ".tsv", ".csv"})
      if (file_exists(folder / (stem + ending))) return folder / (stem + ending);
  for (const std::string& stem : stems)
    for (const char* ending : {".jsonl", ".json", ".tsv", ".csv"})
      for (const Packing& packing : kPackings) {
        const fs::path packed = folder / fmt::format("{}{}{}", stem, ending, packing.ending);
        if (file_exists(packed)) refuse_packed(packed, packing.program);
      }
  return {};
}

uint64_t hash_row(const DataRow& row) {
  uint64_t sum = 0;
  for (const auto& [key, value] : row.fields.items())
    sum += std::hash<std::string>()(fmt::format("{} {}{}", key.size(), key, value.dump()));
  return sum;
}

std::string string_field(const DataRow& row, std::string_view key) {
  const auto found = row.fields.find(key);
  const Json* value = found == row.fields.end() ? nullptr : &*found;
  if (value == nullptr || !value->is_string())
    throw bad_input(fmt::format("{}: {}", row.where, key), describe_json(value), "a string");
  return value->get<std::string>();
}

std::optional<std::vector<std::string>> strings_of(const Json* value) {
  if (value == nullptr || !value->is_array()) return std::nullopt;
  std::vector<std::string> strings;
  for (const Json& each : *value) {
    if (!each.is_string()) return std::nullopt;
    strings.push_back(each.get<std::string>());
  }
  return strings;
}

std::vector<std::string> strings_field(const DataRow& row, std::string_view key, size_t size) {
  const auto found = row.fields.find(key);
  const Json* value = found == row.fields.end() ? nullptr : &*found;
  std::optional<std::vector<std::string>> strings = strings_of(value);
  if (!strings || (size > 0 && strings->size() != size))
    throw bad_input(
        fmt::format("{}: {}", row.where, key), describe_json(value),
        size > 0 ? fmt::format("an array of {} strings", size) : std::string("an array of strings"));
  return *std::move(strings);
}

int64_t index_field(const DataRow& row, std::string_view key, size_t count) {
  const int64_t index = integer_field(row, key);
  if (index < 0 || index >= static_cast<int64_t>(count))
    throw bad_input(
        fmt::format("{}: {}", row.where, key), fmt::format("{}", index),
        fmt::format("0 to {}{}", count - 1, index == -1 ? " (files without labels cannot be scored)" : ""));
  return index;
}

int64_t integer_field(const DataRow& row, std::string_view key) {
  const auto found = row.fields.find(key);
  const Json* value = found == row.fields.end() ? nullptr : &*found;
  if (value != nullptr && value->is_number_integer()) return value->get<int64_t>();
  if (value != nullptr && value->is_string()) {
    const auto& text = value->get_ref<const std::string&>();
    int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc() && end == text.data() + text.size()) return number;
  }
  throw bad_input(fmt::format("{}: {}", row.where, key), describe_json(value), "a whole number");
}

}  // namespace satune
