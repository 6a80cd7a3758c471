#include "data/tokenizers/json_access.h"

#include "data/files/error.h"

namespace satune {

const nlohmann::json& member(const nlohmann::json& value, const char* key, const std::string& where) {
  if (!value.is_object()) throw bad_input(where, value.type_name(), "an object");
  const auto found = value.find(key);
  if (found == value.end()) throw bad_input(where + "." + key, "nothing", "a value");
  return *found;
}

std::string string_member(const nlohmann::json& value, const char* key, const std::string& where) {
  const nlohmann::json& found = member(value, key, where);
  if (!found.is_string()) throw bad_input(where + "." + key, found.type_name(), "a string");
  return found.get<std::string>();
}

bool bool_member(const nlohmann::json& value, const char* key, const std::string& where, bool fallback) {
  if (!value.is_object() || !value.contains(key) || value[key].is_null()) return fallback;
  if (!value[key].is_boolean()) throw bad_input(where + "." + key, value[key].type_name(), "true or false");
  return value[key].get<bool>();
}

}  // namespace satune
