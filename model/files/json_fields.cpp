#include "model/files/json_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "data/files/error.h"

namespace satune {
namespace {

// Tokens are int32 all over the data room.
constexpr int64_t kMaxTokenId = std::numeric_limits<int32_t>::max();

std::optional<int64_t> as_integer(const Json& value, int64_t min, int64_t max) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(max)) return std::nullopt;
  const int64_t integer = value.get<int64_t>();
  if (integer < min || integer > max) return std::nullopt;
  return integer;
}

}  // namespace

JsonFields::JsonFields(const Json& json, std::string source) : json_(json), source_(std::move(source)) {
  if (!json_.is_object()) throw bad_input(source_, describe_json(&json_), "an object");
}

const Json* JsonFields::find(std::string_view key) const {
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

std::string JsonFields::where(std::string_view key) const {
  return fmt::format("{}: key {}", source_, key);
}

void JsonFields::fail(std::string_view key, std::string_view expected) const {
  throw bad_input(where(key), describe_json(find(key)), expected);
}

void JsonFields::allow_only(const std::vector<std::string>& keys) const {
  for (const auto& [key, value] : json_.items()) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    const std::string nearest = nearest_name(key, keys);
    throw bad_input(source_, "the unknown key " + quote_json(key),
                    nearest.empty() ? fmt::format("one of {}", fmt::join(keys, ", ")) : quote_json(nearest));
  }
}

int64_t JsonFields::integer(std::string_view key, int64_t min, int64_t max,
                            std::optional<int64_t> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  const std::optional<int64_t> integer = value == nullptr ? std::nullopt : as_integer(*value, min, max);
  if (!integer) fail(key, fmt::format("an integer from {} to {}", min, max));
  return *integer;
}

double JsonFields::number(std::string_view key, std::optional<double> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value == nullptr || !value->is_number()) fail(key, "a number");
  return value->get<double>();
}

double JsonFields::positive_number(std::string_view key, std::optional<double> fallback) const {
  const double value = number(key, fallback);
  if (!(value > 0)) fail(key, "a positive number");
  return value;
}

bool JsonFields::boolean(std::string_view key, std::optional<bool> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value == nullptr || !value->is_boolean()) fail(key, "true or false");
  return value->get<bool>();
}

std::string JsonFields::string(std::string_view key, std::optional<std::string> fallback) const {
  const Json* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value == nullptr || !value->is_string()) fail(key, "a string");
  return value->get<std::string>();
}

JsonFields JsonFields::object(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr || !value->is_object()) fail(key, "an object");
  return JsonFields(*value, fmt::format("{}: {}", source_, key));
}

std::vector<int64_t> JsonFields::token_ids(std::string_view key) const {
  const Json* value = find(key);
  std::vector<int64_t> ids;
  if (value == nullptr) return ids;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& item : list) {
    const std::optional<int64_t> id = as_integer(item, 0, kMaxTokenId);
    if (!id) fail(key, "a token id or a list of token ids");
    ids.push_back(*id);
  }
  return ids;
}

Json token_ids_json(const std::vector<int64_t>& ids) {
  if (ids.empty()) return nullptr;
  if (ids.size() == 1) return ids.front();
  return ids;
}

}  // namespace satune
