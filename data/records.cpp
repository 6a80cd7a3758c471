#include "data/records.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "data/files/error.h"
#include "data/record_scanner.h"
#include "data/utf8.h"

namespace satune {
namespace {

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

bool named_as_json(const std::filesystem::path& path) {
  return path.extension() == ".json" || path.extension() == ".jsonl";
}

/// The first byte that is not a space; none in a file of spaces.
std::optional<char> first_byte(const std::filesystem::path& path) {
  const MappedFile file(path);
  std::string_view text = file.text();
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  const size_t first = text.find_first_not_of(kJsonSpace);
  if (first == std::string_view::npos) return std::nullopt;
  return text[first];
}

bool holds_records(const std::filesystem::path& path) {
  if (is_text_file(path)) return false;
  if (named_as_json(path)) return true;
  const auto first = first_byte(path);
  return first == '[' || first == '{';
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

bool is_text_file(const std::filesystem::path& path) {
  return path.extension() == ".txt";
}

DataFormat detect_data_format(const std::filesystem::path& path, const ColumnNames& columns) {
  if (is_text_file(path)) return DataFormat::kText;
  RecordScanner scanner(path);  // owns the text that the record is a view of
  const Json record = parse_record(*scanner.next(), path);
  return record_format(record, columns);
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
  if (const auto first = first_byte(path); !named_as_json(path) && first && *first != '[' && *first != '{')
    throw bad_input(
        path.string(),
        fmt::format("a file that begins with the byte 0x{:02x}", static_cast<unsigned char>(*first)),
        fmt::format("JSON or JSONL with \"{}\" in each record, or a name in .txt for plain text",
                    columns.text));
  std::vector<TextDocument> documents;
  RecordScanner scanner(path);
  while (const auto raw = scanner.next()) {
    Json json = parse_record(*raw, path);
    documents.push_back({take_text(json, columns.text, *raw), raw->number});
  }
  return documents;
}

}  // namespace satune
