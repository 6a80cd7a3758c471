// Training files as records: Alpaca JSON and JSONL, and plain text.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace satune {

/// One instruction record. Texts are valid UTF-8, kept byte for byte.
struct Record {
  std::string instruction;
  std::string input;  ///< "" = the record has none
  std::string output;
  size_t number = 0;  ///< 1-based position in its file; 0 = not from a file

  bool has_input() const { return !input.empty(); }
};

/// One document of plain text.
struct TextDocument {
  std::string text;
  size_t number = 0;  ///< 1-based position in its file
};

/// The keys that hold each part of a record. Other keys of a record are ignored.
struct ColumnNames {
  std::string instruction = "instruction";
  std::string input = "input";
  std::string output = "output";
  std::string text = "text";
  bool operator==(const ColumnNames&) const = default;
};

enum class DataFormat {
  kAlpaca,  ///< prompt and response, the response is trained
  kText,    ///< every token is trained
};

/// A .txt file: plain text, one document.
bool is_text_file(const std::filesystem::path& path);

/// Plain text when the name ends in .txt, or when the first record has the text column and neither the
/// instruction nor the output column; else Alpaca. Throws as the readers do.
DataFormat detect_data_format(const std::filesystem::path& path, const ColumnNames& columns = {});

/// Reads a JSON array of objects or JSONL (told apart by the first byte that is not a space: '[' or '{').
/// `instruction` and `output` are required strings; `input` may be missing, null or "". Throws BadInput that
/// names file, record (JSONL: line) and key: no such file, empty, no record, not JSON, not an object, a key
/// missing, twice or of another type, invalid UTF-8, an array that is cut off.
std::vector<Record> read_alpaca(const std::filesystem::path& path, const ColumnNames& columns = {});

/// What a model is asked.
struct PromptRecord {
  std::optional<std::string> text;  ///< plain text to continue; without it, `record` is to be answered
  Record record;                    ///< its number (of a text file: the line's) in any case; no output
};

/// A file of prompts: records as read_alpaca() takes them, whose output may be missing, or whose only part is
/// a string `prompt`, to be continued as it is; or plain text, one prompt a line, blank lines skipped. A name
/// that ends in .txt is text, one in .json or .jsonl is records, and others are records where the first byte
/// that is not a space is '[' or '{'. Throws as read_alpaca(), and for a record with both or neither.
std::vector<PromptRecord> read_prompts(const std::filesystem::path& path);

/// A .txt file is one document; JSON arrays and JSONL hold one in `text` of each record. Throws as above, and
/// saying which names are plain text's for a file that is neither.
std::vector<TextDocument> read_plain_text(const std::filesystem::path& path, const ColumnNames& columns = {});

}  // namespace satune
