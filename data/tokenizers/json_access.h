// Members of a tokenizer.json's objects, with errors that name where they stand.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace satune {

/// The member `key` of the object `value`, which stands at `where`. Throws BadInput without one.
const nlohmann::json& member(const nlohmann::json& value, const char* key, const std::string& where);
std::string string_member(const nlohmann::json& value, const char* key, const std::string& where);
/// `fallback` when the member is absent or null.
bool bool_member(const nlohmann::json& value, const char* key, const std::string& where, bool fallback);

}  // namespace satune
