#include "data/record_scanner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace satune {
namespace {

/// parse_json says ":line:column: what" of the record's own text; the user wants the place in the file.
BadInput relocated(std::string_view message, const RawRecord& raw, const std::string& name) {
  size_t line = 0, column = 0;
  int used = 0;
  if (std::sscanf(std::string(message).c_str(), ":%zu:%zu%n", &line, &column, &used) != 2) {
    return BadInput(raw.where + std::string(message));
  }
  if (line == 1) column += raw.column - 1;
  message.remove_prefix(static_cast<size_t>(used));
  return BadInput(fmt::format("{}:{}:{}: record {}{}{}", name, raw.line + line - 1, column, raw.number,
                              message,
                              raw.is_line ? " (a file that begins with '{' holds one object per line)" : ""));
}

}  // namespace

RecordScanner::RecordScanner(const std::filesystem::path& path)
    : file_(path), name_(path.string()), text_(file_.text()) {
  if (text_.starts_with(kByteOrderMark)) text_.remove_prefix(kByteOrderMark.size());
  skip_space();
  if (at_end()) throw bad_input(name_, "an empty file", "records");
  if (peek() != '[' && peek() != '{') {
    throw bad_input(
        name_, fmt::format("a file that begins with the byte 0x{:02x}", static_cast<unsigned char>(peek())),
        "a JSON array ('[') or one JSON object per line ('{')");
  }
  is_array_ = peek() == '[';
  if (is_array_) advance();
}

std::optional<RawRecord> RecordScanner::next() {
  auto record = is_array_ ? next_of_array() : next_line();
  if (!record && number_ == 0) throw bad_input(name_, "an empty array", "at least one record");
  return record;
}

bool RecordScanner::recover() {
  if (inside_) {  // without its closing bracket the record ran to the end of the file
    if (++ran_out_ > kMostRunOut) return false;
    const auto next = next_beginning(text_.size());
    if (next) go_on_at(*next);
    return next.has_value();
  }
  while (!at_end() && peek() != '{') advance();
  recovered_ = !at_end();
  return recovered_;
}

void RecordScanner::rescan() {
  if (!is_array_ || (string_cut_ && none_follow_)) return;
  const auto next = next_beginning(string_cut_ ? text_.size() : position_);
  if (next) go_on_at(*next);
  // Once is enough: a file of many such records would be searched to its end for each.
  if (string_cut_ && !next) none_follow_ = true;
}

std::optional<size_t> RecordScanner::next_beginning(size_t limit) const {
  const auto indent = [&](size_t line_begin) {
    return text_.find_first_not_of(" \t", line_begin) - line_begin;
  };
  const size_t own_line = begin_line_begin_;
  const bool first_of_line = own_line + indent(own_line) == begin_;
  const std::string_view searched = text_.substr(0, limit);
  for (size_t end = searched.find('\n', begin_); end != std::string_view::npos;
       end = searched.find('\n', end + 1)) {
    const size_t first = searched.find_first_not_of(" \t", end + 1);
    if (first == std::string_view::npos) break;
    if (text_[first] == '{' && (!first_of_line || first - (end + 1) == indent(own_line))) return first;
  }
  return std::nullopt;
}

void RecordScanner::go_on_at(size_t position) {
  const std::string_view skipped = text_.substr(begin_, position - begin_);
  line_ = begin_line_ + static_cast<size_t>(std::count(skipped.begin(), skipped.end(), '\n'));
  line_begin_ = text_.rfind('\n', position) + 1;
  position_ = position;
  inside_ = false;
  recovered_ = true;
}

void RecordScanner::advance() {
  if (text_[position_++] == '\n') {
    ++line_;
    line_begin_ = position_;
  }
}

void RecordScanner::skip_space() {
  while (!at_end() && kJsonSpace.find(peek()) != std::string_view::npos) advance();
}

std::optional<RawRecord> RecordScanner::next_line() {
  skip_space();
  if (at_end()) return std::nullopt;
  const size_t end = std::min(text_.find('\n', position_), text_.size());
  RawRecord record{text_.substr(position_, end - position_),
                   fmt::format("{} line {}", name_, line_),
                   ++number_,
                   line_,
                   column(),
                   true};
  position_ = end;
  return record;
}

std::optional<RawRecord> RecordScanner::next_of_array() {
  skip_space();
  if (at_end()) throw cut_off("after");
  if (number_ > 0 && peek() == ',') {
    advance();
    skip_space();
    if (at_end()) throw cut_off("after");
    if (peek() == ']') {
      throw bad_input(fmt::format("{} line {}", name_, line_), "']' after a comma", "another record");
    }
  } else if (peek() == ']') {
    advance();
    skip_space();
    if (!at_end())
      throw bad_input(fmt::format("{} line {}", name_, line_), "text after the array", "the end of the file");
    return std::nullopt;
  } else if (number_ > 0 && !recovered_) {
    throw bad_input(fmt::format("{} line {}, after record {}", name_, line_, number_),
                    fmt::format("'{}'", peek()), "',' or ']'");
  }
  ++number_;
  std::string where = fmt::format("{} record {} (begins on line {})", name_, number_, line_);
  const size_t line = line_, first_column = column();
  return RawRecord{element(), std::move(where), number_, line, first_column, false};
}

/// The text up to the end of the value that begins here. Only strings and brackets matter; whether it is
/// JSON is for the parser to say.
std::string_view RecordScanner::element() {
  begin_ = position_;
  begin_line_ = line_;
  begin_line_begin_ = line_begin_;
  inside_ = true;
  string_cut_ = false;
  recovered_ = false;
  int depth = 0;
  bool closed = false;
  for (; !at_end(); advance()) {
    const char c = peek();
    if (c == '"') {
      if (!skip_string()) {
        advance();  // the line's end, which the parser names
        closed = string_cut_ = true;
        break;
      }
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (depth == 0) break;
      if (--depth == 0) {
        advance();
        closed = true;
        break;
      }
    } else if (c == ',' && depth == 0) {
      break;
    }
  }
  if (at_end() && !closed) throw cut_off("inside");
  inside_ = false;
  return text_.substr(begin_, position_ - begin_);
}

/// From the opening quote to the closing one. No JSON string holds a line's end: false there, so that the
/// record it spoils is the only one.
bool RecordScanner::skip_string() {
  advance();
  while (!at_end() && peek() != '"' && peek() != '\n') {
    if (peek() == '\\') advance();
    if (!at_end()) advance();
  }
  if (at_end()) throw cut_off("inside");
  return peek() == '"';
}

BadInput RecordScanner::cut_off(std::string_view place) const {
  const std::string record = number_ == 0 ? "the opening '['" : fmt::format("record {}", number_);
  return bad_input(name_, fmt::format("the end of the file {} {}", place, record),
                   "']' (the array is cut off)");
}

Json parse_record(const RawRecord& raw, const std::filesystem::path& path) {
  Json record;
  try {
    record = parse_json(raw.text, "");
  } catch (const BadInput& error) {
    throw relocated(error.what(), raw, path.string());
  }
  if (!record.is_object()) throw bad_input(raw.where, describe_json(&record), "an object");
  return record;
}

DataFormat record_format(const Json& record, const ColumnNames& columns) {
  const bool is_text = record.contains(columns.text) && !record.contains(columns.instruction) &&
                       !record.contains(columns.output);
  return is_text ? DataFormat::kText : DataFormat::kAlpaca;
}

std::string take_text(Json& record, const std::string& key, const RawRecord& raw) {
  const auto found = record.find(key);
  if (found == record.end()) {
    std::string keys;
    for (const auto& item : record.items())
      keys += fmt::format("{}\"{}\"", keys.empty() ? "" : ", ", item.key());
    throw bad_input(raw.where, fmt::format("no key \"{}\" (its keys: {})", key, keys.empty() ? "none" : keys),
                    "a string there (other key names are mapped by `columns`)");
  }
  if (!found->is_string()) {
    throw bad_input(fmt::format("{}, key \"{}\"", raw.where, key), describe_json(&*found), "a string");
  }
  return std::move(found->get_ref<std::string&>());
}

std::string take_optional_text(Json& record, const std::string& key, const RawRecord& raw) {
  const auto found = record.find(key);
  if (found == record.end() || found->is_null()) return {};
  return take_text(record, key, raw);
}

}  // namespace satune
