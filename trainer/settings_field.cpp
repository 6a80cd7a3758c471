#include "trainer/settings_field.h"

#include <fmt/format.h>

#include <cmath>

#include "data/files/error.h"

namespace satune {
namespace {

std::string number_text(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15 ? fmt::format("{}", static_cast<int64_t>(value))
                                                              : fmt::format("{}", value);
}

bool satisfies(double value, const Rule& rule) {
  return std::isfinite(value) && (rule.above_min ? value > rule.min : value >= rule.min) &&
         (rule.below_max ? value < rule.max : value <= rule.max);
}

// A string that holds a number is a common slip ("2e-5"): say what is wrong with it.
std::string expected_number(const Json& value, bool whole, const Rule& rule) {
  std::string expected = describe_number(whole, rule);
  if (!rule.unset_word.empty()) expected += describe_unset(rule);
  if (value.is_string() && parse_loose(value.get<std::string>()).is_number()) expected += " (without quotes)";
  return expected;
}

}  // namespace

std::string describe_unset(const Rule& rule) {
  return rule.unset_word.empty() ? " | null" : fmt::format(" | \"{}\"", rule.unset_word);
}

std::string describe_number(bool whole, const Rule& rule) {
  std::string text = whole ? "a whole number" : "a number";
  const bool has_min = std::isfinite(rule.min), has_max = std::isfinite(rule.max);
  if (has_min && has_max && !rule.above_min && !rule.below_max) {
    return fmt::format("{} from {} to {}", text, number_text(rule.min), number_text(rule.max));
  }
  if (has_min) text += fmt::format(" {} {}", rule.above_min ? ">" : ">=", number_text(rule.min));
  if (has_max)
    text +=
        fmt::format("{} {} {}", has_min ? " and" : "", rule.below_max ? "<" : "<=", number_text(rule.max));
  return text;
}

double read_number(const Json& value, const Rule& rule, std::string_view where) {
  if (!value.is_number() || !satisfies(value.get<double>(), rule)) {
    throw bad_input(where, describe_json(&value), expected_number(value, false, rule));
  }
  return value.get<double>();
}

int64_t read_whole_number(const Json& value, const Rule& rule, std::string_view where) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: beyond it a double is no longer a count
  const bool whole = value.is_number() && value.get<double>() == std::floor(value.get<double>()) &&
                     std::abs(value.get<double>()) <= kExact;
  if (!whole || !satisfies(value.get<double>(), rule)) {
    throw bad_input(where, describe_json(&value), expected_number(value, true, rule));
  }
  return static_cast<int64_t>(value.get<double>());
}

uint64_t read_seed(const Json& value, std::string_view where) {
  if (!value.is_number_unsigned()) {
    throw bad_input(where, describe_json(&value), expected_number(value, true, kNotNegative));
  }
  return value.get<uint64_t>();
}

std::string describe_choices(const std::vector<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names) {
    if (!text.empty()) text += " | ";
    text += choice_json(name).dump();
  }
  return text;
}

Json choice_json(std::string_view name) {
  if (name == "true") return true;
  if (name == "false") return false;
  return std::string(name);
}

size_t read_choice(const Json& value, const std::vector<std::string_view>& names, std::string_view where) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (value == choice_json(names[i])) return i;
  }
  throw bad_input(where, describe_json(&value), describe_choices(names));
}

std::vector<std::string> read_strings(const Json& value, std::string_view where) {
  if (!value.is_array()) throw bad_input(where, describe_json(&value), "a list of strings");
  std::vector<std::string> result;
  for (const Json& item : value) {
    if (!item.is_string()) {
      throw bad_input(fmt::format("{}[{}]", where, result.size()), describe_json(&item), "a string");
    }
    result.push_back(item.get<std::string>());
  }
  return result;
}

Json parse_loose(std::string_view text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json(std::string(text)) : value;
}

bool Codec<bool>::read(const Json& value, const Rule&, std::string_view where) {
  if (!value.is_boolean()) throw bad_input(where, describe_json(&value), "true or false");
  return value.get<bool>();
}

std::string Codec<std::string>::read(const Json& value, const Rule&, std::string_view where) {
  if (!value.is_string()) throw bad_input(where, describe_json(&value), "a string");
  return value.get<std::string>();
}

Json Codec<std::string>::from_text(std::string_view text) {
  Json value = parse_loose(text);
  return value.is_string() ? value : Json(std::string(text));
}

Json Codec<std::vector<std::string>>::from_text(std::string_view text) {
  Json value = parse_loose(text);
  return value.is_array() ? value : Json(std::vector<std::string>{std::string(text)});
}

}  // namespace satune
