// Strict JSON: what nlohmann::json accepts, less duplicate keys, plus `//` comments where a config allows
// them. Errors are BadInput and name the file, line and column.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace satune {

/// Objects keep the order of their keys in the file.
using Json = nlohmann::ordered_json;

struct JsonOptions {
  bool allow_comments = false;
  size_t line = 0;  ///< of the source, where the text is that line alone
};

/// Parses one document; `source` names it in errors ("config.json", "model.safetensors header").
/// Throws BadInput on invalid UTF-8, a syntax error, trailing text or a key that stands twice in one object.
Json parse_json(std::string_view text, std::string_view source, JsonOptions options = {});

/// Reads and parses a file. Throws BadInput if it is missing, a directory, unreadable, empty or not JSON.
Json read_json_file(const std::filesystem::path& path, JsonOptions options = {});

/// Serialises with two-space indent and a final newline. Non-finite numbers become null (valid JSON).
std::string write_json(const Json& value);

/// What kind of value this is, for error messages: "the string \"abc\"", "an array", "nothing".
std::string describe_json(const Json* value);

/// `text` in quotes, with escapes, on one line: names out of a file as error messages show them.
std::string quote_json(std::string_view text);

/// Edit distance aware suggestion: the candidate nearest to `word`, or "" if none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace satune
