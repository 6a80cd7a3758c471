// The records of a JSON array or of JSONL as they stand in the file, before anybody asks what they mean.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "data/records.h"

namespace satune {

inline constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
inline constexpr std::string_view kJsonSpace = " \t\r\n";

struct RawRecord {
  std::string_view text;  ///< of the scanner's file
  std::string where;      ///< names it in errors
  size_t number = 0;
  size_t line = 0, column = 0;  ///< of its first byte, from 1
  bool is_line = false;         ///< of JSONL
};

/// Cuts a JSON array or JSONL into the texts of its records without parsing them, so that only one record is
/// ever held as a JSON tree.
class RecordScanner {
 public:
  /// Throws BadInput for a file that is missing, empty, or begins with neither '[' nor '{'.
  explicit RecordScanner(const std::filesystem::path& path);

  /// The next record, or nothing at the end of a well-formed file. Throws BadInput that names the place.
  std::optional<RawRecord> next();

  /// After next() threw: goes on at the next place that looks like the beginning of a record. False where
  /// there is none, or when many records had no end (each is looked for up to the end of the file); the rest
  /// of the file is not read then.
  bool recover();

  /// After a record of an array that is no JSON: its end may be wrong too, so it goes back, or on from a
  /// string that a line's end cut off, to where the next one seems to begin, a '{' that stands on its line as
  /// this one does.
  void rescan();

  bool is_array() const { return is_array_; }
  size_t bytes() const { return file_.bytes().size(); }
  size_t number() const { return number_; }                ///< of the last record begun; 0 = none
  size_t line() const { return line_; }                    ///< where the scanner stands, from 1
  size_t begin_line() const { return begin_line_; }        ///< of the last record of an array, from 1
  bool gave_up() const { return ran_out_ > kMostRunOut; }  ///< recover() did: the rest is not read

 private:
  static constexpr int kMostRunOut = 64;

  bool at_end() const { return position_ == text_.size(); }
  char peek() const { return text_[position_]; }
  void advance();
  size_t column() const { return position_ - line_begin_ + 1; }
  void skip_space();
  std::optional<RawRecord> next_line();
  std::optional<RawRecord> next_of_array();
  std::string_view element();
  std::optional<size_t> next_beginning(size_t limit) const;
  void go_on_at(size_t position);
  bool skip_string();
  BadInput cut_off(std::string_view place) const;

  MappedFile file_;
  std::string name_;
  std::string_view text_;
  size_t position_ = 0;
  size_t line_ = 1, line_begin_ = 0;
  size_t number_ = 0;
  bool is_array_ = false;
  size_t begin_ = 0, begin_line_ = 1, begin_line_begin_ = 0;  ///< of the last record of an array
  bool string_cut_ = false;                                   ///< it ends where a line ended within a string
  bool none_follow_ = false;  ///< a search found no further record that begins a line
  bool inside_ = false;       ///< its end was not found
  int ran_out_ = 0;           ///< how often recover() was called then
  bool recovered_ = false;    ///< the next one needs no comma before it
};

/// The record's JSON object. Throws BadInput whose place is that in the file.
Json parse_record(const RawRecord& raw, const std::filesystem::path& path);

/// Plain text when it has the text column and neither the instruction nor the output column.
DataFormat record_format(const Json& record, const ColumnNames& columns);

/// Moves the text out of a record. Throws BadInput when the key is missing or holds something else.
std::string take_text(Json& record, const std::string& key, const RawRecord& raw);

/// The same, "" for a key that is missing or null.
std::string take_optional_text(Json& record, const std::string& key, const RawRecord& raw);

}  // namespace satune
