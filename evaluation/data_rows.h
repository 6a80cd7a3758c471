// Rows of a benchmark's file, whatever its format: JSON, JSONL, TSV, CSV.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/files/json.h"

namespace satune {

/// One row and where it stands, for errors: "dev.tsv: line 7".
struct DataRow {
  Json fields;  ///< an object; every field of a TSV or CSV is a string
  std::string where;
};

/// Reads rows by the file's ending: .json and .jsonl (an array of objects, or one a line, told apart by the
/// first character), .tsv (tabs, no quoting, as GLUE's), .csv (RFC 4180). `columns` names the fields of a
/// table that has no header row; empty = the first row is the header. A byte-order mark is skipped. Throws
/// BadInput that names file and line: no such file, nothing in it, not UTF-8, a row with another number of
/// fields than the header (with `short_rows`, those that have fewer are left out and counted there), an
/// unknown ending, a compressed or Parquet file (with the command that unpacks it).
std::vector<DataRow> read_data_rows(const std::filesystem::path& path,
                                    const std::vector<std::string>& columns = {},
                                    int64_t* short_rows = nullptr);

/// The first of `stems` with an ending that read_data_rows() knows, in `folder`; "" where there is none.
/// Throws BadInput when there is only a compressed one.
std::filesystem::path find_data_file(const std::filesystem::path& folder,
                                     const std::vector<std::string>& stems);

/// The same number for rows of the same fields, in whatever order, and another for others.
uint64_t hash_row(const DataRow& row);

/// A field that has to be a string. Throws BadInput naming row and key.
std::string string_field(const DataRow& row, std::string_view key);

/// A field that has to be an array of strings, `size` of them where that is not 0. Throws as above.
std::vector<std::string> strings_field(const DataRow& row, std::string_view key, size_t size = 0);

/// The strings of an array; nothing where `value` is something else (nullptr: missing).
std::optional<std::vector<std::string>> strings_of(const Json* value);

/// A field that counts one of `count` choices from 0 on. Throws as above.
int64_t index_field(const DataRow& row, std::string_view key, size_t count);

/// A field that is a whole number, or a string that says one. Throws as above.
int64_t integer_field(const DataRow& row, std::string_view key);

}  // namespace satune
