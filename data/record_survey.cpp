#include "data/record_survey.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string_view>
#include <utility>

#include "data/files/error.h"
#include "data/record_scanner.h"
#include "data/tokenizers/code_points.h"
#include "data/utf8.h"

namespace satune {
namespace {

/// The message without the place, which a problem has beside it.
std::string without_place(std::string_view message, const RawRecord& raw) {
  if (message.starts_with(raw.where)) message.remove_prefix(raw.where.size());
  while (message.starts_with(':') || message.starts_with(',') || message.starts_with(' '))
    message.remove_prefix(1);
  return std::string(message);
}

/// "LINE:COLUMN: record N: what" of a record that has its number and line beside it.
std::string without_record(std::string message, const RawRecord& raw) {
  size_t line = 0, column = 0, number = 0;
  int used = 0;
  if (std::sscanf(message.c_str(), "%zu:%zu: record %zu: %n", &line, &column, &number, &used) != 3 ||
      used == 0)
    return message;
  const std::string place = line == raw.line ? "" : fmt::format("line {}, ", line);
  return fmt::format("{}column {}: {}", place, column, message.substr(static_cast<size_t>(used)));
}

/// "line 3, after record 2: what" likewise.
std::string without_line(std::string message, size_t line) {
  const std::string place = fmt::format("line {}", line);
  const size_t colon = message.find(": ");
  return message.starts_with(place) && colon != std::string::npos ? message.substr(colon + 2) : message;
}

std::string describe_invalid(std::string_view text, size_t at) {
  return fmt::format("the byte 0x{:02x} at byte {} of the record", static_cast<unsigned char>(text[at]), at);
}

constexpr char32_t kReplacementCharacter = 0xFFFD;

class Survey {
 public:
  Survey(const std::filesystem::path& path, const ColumnNames& columns, size_t listed)
      : path_(path),
        columns_(columns),
        scanner_(path),
        survey_{.format = DataFormat::kAlpaca,
                .container = scanner_.is_array() ? "JSON array" : "JSONL",
                .bytes = scanner_.bytes(),
                .records = 0,
                .instructions = {},
                .documents = {},
                .lines = {},
                .ignored_keys = {},
                .problems = DataProblems(listed),
                .replaced = false,
                .unread = {}} {}

  RecordSurvey run() {
    while (true) {
      try {
        const auto raw = scanner_.next();
        if (!raw) break;
        ++survey_.records;
        see(*raw);
      } catch (const BadInput& error) {
        note_first(error);
        add(ProblemKind::kBrokenFile, scanner_.number(), scanner_.line(),
            without_line(without_file(error.what()), scanner_.line()));
        if (scanner_.recover()) continue;
        // Beside the problems, of which the first few alone are listed: the counts are not those of the file.
        if (scanner_.gave_up())
          survey_.unread =
              fmt::format("what follows record {} (line {}): too many records up to it have no end",
                          scanner_.number(), scanner_.begin_line());
        break;
      }
    }
    // Records that are cut off were begun, but never given out.
    survey_.records = std::max(survey_.records, static_cast<int64_t>(scanner_.number()));
    if (!format_) throw BadInput(first_error_);
    survey_.format = *format_;
    return std::move(survey_);
  }

 private:
  void add(ProblemKind kind, size_t record, size_t line, std::string text) {
    survey_.problems.add(kind, {record, line, std::move(text)});
  }
  void add(ProblemKind kind, const RawRecord& raw, std::string text) {
    add(kind, raw.number, raw.line, std::move(text));
  }
  void note_first(const BadInput& error) {
    if (first_error_.empty()) first_error_ = error.what();
  }
  std::string without_file(std::string_view message) const {
    const std::string name = path_.string();
    if (message.starts_with(name)) message.remove_prefix(name.size());
    while (message.starts_with(':') || message.starts_with(' ')) message.remove_prefix(1);
    return std::string(message);
  }

  void see(const RawRecord& raw) {
    const auto invalid = find_invalid_utf8(raw.text);
    std::string replaced;
    RawRecord readable = raw;
    if (invalid) {
      add(ProblemKind::kInvalidUtf8, raw, describe_invalid(raw.text, *invalid));
      replaced = replace_invalid_utf8(raw.text);
      readable.text = replaced;
    }
    Json json;
    try {
      json = parse_json(readable.text, "");
    } catch (const BadInput&) {
      see_broken(readable);
      scanner_.rescan();
      return;
    }
    if (!json.is_object()) {
      const std::string found = describe_json(&json);
      note_first(bad_input(raw.where, found, "an object"));
      add(ProblemKind::kNotAnObject, raw, "found " + found);
      return;
    }
    if (!format_) format_ = record_format(json, columns_);
    read_fields(json, raw, !invalid);
  }

  /// Once more, for the message with the place in the file.
  void see_broken(const RawRecord& raw) {
    try {
      parse_record(raw, path_);
    } catch (const BadInput& error) {
      note_first(error);
      add(ProblemKind::kInvalidJson, raw, without_record(without_file(error.what()), raw));
    }
  }

  std::optional<std::string> take(Json& json, const std::string& key, const RawRecord& raw, bool optional) {
    const bool missing = !json.contains(key);
    try {
      return optional ? take_optional_text(json, key, raw) : take_text(json, key, raw);
    } catch (const BadInput& error) {
      add(missing ? ProblemKind::kMissingKey : ProblemKind::kWrongType, raw,
          without_place(error.what(), raw));
      return std::nullopt;
    }
  }

  void count_ignored(const Json& json) {
    const bool text = format_ == DataFormat::kText;
    for (const auto& item : json.items()) {
      const std::string& key = item.key();
      const bool read = text ? key == columns_.text
                             : key == columns_.instruction || key == columns_.input || key == columns_.output;
      if (!read) ++survey_.ignored_keys[key];
    }
  }

  void read_fields(Json& json, const RawRecord& raw, bool usable) {
    count_ignored(json);
    if (format_ == DataFormat::kText) {
      auto text = take(json, columns_.text, raw, false);
      if (!text || !usable) return;
      survey_.documents.push_back({std::move(*text), raw.number});
      survey_.lines.push_back(raw.line);
      return;
    }
    if (record_format(json, columns_) == DataFormat::kText) {
      add(ProblemKind::kPlainTextRecord, raw,
          fmt::format("has \"{}\" and neither \"{}\" nor \"{}\"", columns_.text, columns_.instruction,
                      columns_.output));
      return;
    }
    auto instruction = take(json, columns_.instruction, raw, false);
    auto input = take(json, columns_.input, raw, true);
    auto output = take(json, columns_.output, raw, false);
    if (!instruction || !input || !output || !usable) return;
    survey_.instructions.push_back(
        {std::move(*instruction), std::move(*input), std::move(*output), raw.number});
    survey_.lines.push_back(raw.line);
  }

  const std::filesystem::path& path_;
  const ColumnNames& columns_;
  RecordScanner scanner_;
  RecordSurvey survey_;
  std::optional<DataFormat> format_;
  std::string first_error_;
};

RecordSurvey survey_text_file(const std::filesystem::path& path, size_t listed) {
  std::string text = read_text_file(path);
  RecordSurvey survey{.format = DataFormat::kText,
                      .container = "text file",
                      .bytes = text.size(),
                      .records = 1,
                      .instructions = {},
                      .documents = {},
                      .lines = {1},
                      .ignored_keys = {},
                      .problems = DataProblems(listed),
                      .replaced = false,
                      .unread = {}};
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  if (text.empty()) throw bad_input(path.string(), "an empty file", "text");
  size_t line = 1;
  bool own_replacements = false;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    if (!c.valid) {
      survey.problems.add(ProblemKind::kInvalidUtf8,
                          {1, line, fmt::format("the byte 0x{:02x}", static_cast<unsigned char>(text[i]))});
    }
    own_replacements |= c.valid && c.value == kReplacementCharacter;
    line += c.value == '\n';
    i += c.length;
  }
  if (survey.problems.count(ProblemKind::kInvalidUtf8) > 0) {
    text = replace_invalid_utf8(text);
    survey.replaced = !own_replacements;
  }
  survey.documents.push_back({std::move(text), 1});
  return survey;
}

}  // namespace

int64_t records_with_input(const RecordSurvey& survey) {
  return std::count_if(survey.instructions.begin(), survey.instructions.end(),
                       [](const Record& record) { return record.has_input(); });
}

RecordSurvey survey_records(const std::filesystem::path& path, const ColumnNames& columns, size_t listed) {
  if (is_text_file(path)) return survey_text_file(path, listed);
  return Survey(path, columns, listed).run();
}

}  // namespace satune
