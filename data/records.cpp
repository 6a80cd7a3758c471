#include "data/records.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string_view>
#include <utility>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "data/utf8.h"

namespace satune {
namespace {

constexpr std::string_view kSpace = " \t\r\n";
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

struct RawRecord {
  std::string_view text;
  std::string where;  ///< names it in errors
  size_t number = 0;
  size_t line = 0, column = 0;  ///< of its first byte, from 1
  bool is_line = false;         ///< of JSONL
};

/// Cuts a JSON array or JSONL into the texts of its records without parsing them, so that only one record is
/// ever held as a JSON tree.
class RecordScanner {
 public:
  explicit RecordScanner(const std::filesystem::path& path)
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

  /// The next record, or nothing at the end of a well-formed file.
  std::optional<RawRecord> next() {
    auto record = is_array_ ? next_of_array() : next_line();
    if (!record && number_ == 0) throw bad_input(name_, "an empty array", "at least one record");
    return record;
  }

 private:
  bool at_end() const { return position_ == text_.size(); }
  char peek() const { return text_[position_]; }
  void advance() {
    if (text_[position_++] == '\n') {
      ++line_;
      line_begin_ = position_;
    }
  }
  size_t column() const { return position_ - line_begin_ + 1; }
  void skip_space() {
    while (!at_end() && kSpace.find(peek()) != std::string_view::npos) advance();
  }

  std::optional<RawRecord> next_line() {
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

  std::optional<RawRecord> next_of_array() {
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
        throw bad_input(fmt::format("{} line {}", name_, line_), "text after the array",
                        "the end of the file");
      return std::nullopt;
    } else if (number_ > 0) {
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
  std::string_view element() {
    const size_t begin = position_;
    int depth = 0;
    for (; !at_end(); advance()) {
      const char c = peek();
      if (c == '"') {
        skip_string();
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        if (depth == 0) break;
        if (--depth == 0) {
          advance();
          break;
        }
      } else if (c == ',' && depth == 0) {
        break;
      }
    }
    if (at_end()) throw cut_off("inside");
    return text_.substr(begin, position_ - begin);
  }

  /// From the opening quote to the closing one.
  void skip_string() {
    advance();
    while (!at_end() && peek() != '"') {
      if (peek() == '\\') advance();
      if (!at_end()) advance();
    }
    if (at_end()) throw cut_off("inside");
  }

  BadInput cut_off(std::string_view place) const {
    const std::string record = number_ == 0 ? "the opening '['" : fmt::format("record {}", number_);
    return bad_input(name_, fmt::format("the end of the file {} {}", place, record),
                     "']' (the array is cut off)");
  }

  MappedFile file_;
  std::string name_;
  std::string_view text_;
  size_t position_ = 0;
  size_t line_ = 1, line_begin_ = 0;
  size_t number_ = 0;
  bool is_array_ = false;
};

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

bool is_text_file(const std::filesystem::path& path) {
  return path.extension() == ".txt";
}

TextDocument read_text_document(const std::filesystem::path& path) {
  TextDocument document{read_text_file(path), 1};
  std::string& text = document.text;
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  if (text.empty()) throw bad_input(path.string(), "an empty file", "text");
  if (const auto invalid = find_invalid_utf8(text)) {
    const auto line =
        1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(*invalid), '\n');
    throw bad_input(fmt::format("{} line {}", path.string(), line),
                    fmt::format("the byte 0x{:02x}", static_cast<unsigned char>(text[*invalid])), "UTF-8");
  }
  return document;
}

std::vector<PromptRecord> prompt_lines(const std::filesystem::path& path) {
  const TextDocument document = read_text_document(path);
  std::vector<PromptRecord> prompts;
  size_t number = 0;
  for (size_t begin = 0; begin < document.text.size(); ++number) {
    const size_t end = std::min(document.text.find('\n', begin), document.text.size());
    std::string_view line = std::string_view(document.text).substr(begin, end - begin);
    if (line.ends_with('\r')) line.remove_suffix(1);
    begin = end + 1;
    if (trim_white_space(line).empty()) continue;
    prompts.push_back({std::string(line), {}});
    prompts.back().record.number = number + 1;
  }
  if (prompts.empty()) throw bad_input(path.string(), "blank lines only", "one prompt a line");
  return prompts;
}

bool holds_records(const std::filesystem::path& path) {
  if (is_text_file(path)) return false;
  if (path.extension() == ".json" || path.extension() == ".jsonl") return true;
  const MappedFile file(path);
  const size_t first = file.text().find_first_not_of(kSpace);
  return first != std::string_view::npos && (file.text()[first] == '[' || file.text()[first] == '{');
}

}  // namespace

std::vector<PromptRecord> read_prompts(const std::filesystem::path& path) {
  if (!holds_records(path)) return prompt_lines(path);
  const ColumnNames columns;
  std::vector<PromptRecord> prompts;
  RecordScanner scanner(path);
  while (const auto raw = scanner.next()) {
    Json json = parse_record(*raw, path);
    const bool plain = json.contains("prompt"), instruction = json.contains(columns.instruction);
    if (plain == instruction)
      throw bad_input(raw->where, plain ? "both of \"prompt\" and \"instruction\"" : "neither of them",
                      "one of \"prompt\" and \"instruction\"");
    PromptRecord& prompt = prompts.emplace_back();
    prompt.record.number = raw->number;
    if (plain) {
      prompt.text = take_text(json, "prompt", *raw);
    } else {
      prompt.record.instruction = take_text(json, columns.instruction, *raw);
      prompt.record.input = take_optional_text(json, columns.input, *raw);
    }
  }
  return prompts;
}

DataFormat detect_data_format(const std::filesystem::path& path, const ColumnNames& columns) {
  if (is_text_file(path)) return DataFormat::kText;
  RecordScanner scanner(path);  // owns the text that the record is a view of
  const Json record = parse_record(*scanner.next(), path);
  const bool is_text = record.contains(columns.text) && !record.contains(columns.instruction) &&
                       !record.contains(columns.output);
  return is_text ? DataFormat::kText : DataFormat::kAlpaca;
}

std::vector<Record> read_alpaca(const std::filesystem::path& path, const ColumnNames& columns) {
  std::vector<Record> records;
  RecordScanner scanner(path);
  while (const auto raw = scanner.next()) {
    Json json = parse_record(*raw, path);
    Record record;
    record.number = raw->number;
    record.instruction = take_text(json, columns.instruction, *raw);
    record.input = take_optional_text(json, columns.input, *raw);
    record.output = take_text(json, columns.output, *raw);
    records.push_back(std::move(record));
  }
  return records;
}

std::vector<TextDocument> read_plain_text(const std::filesystem::path& path, const ColumnNames& columns) {
  if (is_text_file(path)) return {read_text_document(path)};
  std::vector<TextDocument> documents;
  RecordScanner scanner(path);
  while (const auto raw = scanner.next()) {
    Json json = parse_record(*raw, path);
    documents.push_back({take_text(json, columns.text, *raw), raw->number});
  }
  return documents;
}

}  // namespace satune
