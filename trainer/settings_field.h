// How one setting is read from JSON or from the text of an override, and written back. Used by the table
// only.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "trainer/settings.h"

namespace satune {

/// What a value must satisfy beyond its type.
struct Rule {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;            ///< min itself is not allowed
  bool below_max = false;            ///< max itself is not allowed
  std::string_view unset_word = {};  ///< of an optional: written for unset instead of null ("auto")
};

inline constexpr Rule kAny{};
inline constexpr Rule kPositive{.min = 0, .above_min = true};
inline constexpr Rule kNotNegative{.min = 0};
inline constexpr Rule kAtLeastOne{.min = 1};
inline constexpr Rule kShare{.min = 0, .max = 1};
inline constexpr Rule kShareBelowOne{.min = 0, .max = 1, .below_max = true};

struct Field {
  SettingInfo info;
  std::string section;  ///< heading printed before this field; "" = none
  bool required = false;
  std::function<void(Settings&, const Json& value, std::string_view where)> set;  ///< throws BadInput
  std::function<Json(const Settings&)> get;
  /// What the text after "key=" means; strings need no quotes.
  std::function<Json(std::string_view text, std::string_view where)> parse_text;
};

/// Every field, in the order they are printed.
const std::vector<Field>& settings_table();
const Field* find_field(std::string_view key);

/// What another trainer's key is called here, as the end of "expected ..."; "" when it is not known.
std::string_view synonym_of(std::string_view key);

// --- Codecs: one per type of field ---

/// Names of an enum's values; "true" and "false" stand for JSON's booleans.
template <class E>
using ChoiceNames = std::vector<std::pair<E, std::string_view>>;
ChoiceNames<AnchorRule> choice_names(AnchorRule);
ChoiceNames<Overlength> choice_names(Overlength);
ChoiceNames<Precision> choice_names(Precision);
ChoiceNames<SchedulerType> choice_names(SchedulerType);
ChoiceNames<WarmupType> choice_names(WarmupType);
ChoiceNames<Checkpointing> choice_names(Checkpointing);
ChoiceNames<NonFinitePolicy> choice_names(NonFinitePolicy);
ChoiceNames<DeviceChoice> choice_names(DeviceChoice);
ChoiceNames<ExportDtype> choice_names(ExportDtype);
ChoiceNames<OptimizerOffload> choice_names(OptimizerOffload);
ChoiceNames<MasterWeights> choice_names(MasterWeights);
ChoiceNames<OptimizerMoments> choice_names(OptimizerMoments);
ChoiceNames<AttnImplementation> choice_names(AttnImplementation);

/// " | null", or " | \"auto\"": how an optional is left unset.
std::string describe_unset(const Rule& rule);
/// "a number > 0", "a whole number from 0 to 3".
std::string describe_number(bool whole, const Rule& rule);
double read_number(const Json& value, const Rule& rule, std::string_view where);
int64_t read_whole_number(const Json& value, const Rule& rule, std::string_view where);
uint64_t read_seed(const Json& value, std::string_view where);
/// Index into `names`.
size_t read_choice(const Json& value, const std::vector<std::string_view>& names, std::string_view where);
std::string describe_choices(const std::vector<std::string_view>& names);
Json choice_json(std::string_view name);
std::vector<std::string> read_strings(const Json& value, std::string_view where);
/// An override's text as JSON: anything that parses, else a string.
Json parse_loose(std::string_view text);

template <class T>
struct Codec;

template <>
struct Codec<bool> {
  static std::string type(const Rule&) { return "true | false"; }
  static bool read(const Json& value, const Rule&, std::string_view where);
  static Json write(bool value, const Rule&) { return value; }
  static Json from_text(std::string_view text) { return parse_loose(text); }
};

template <>
struct Codec<double> {
  static std::string type(const Rule& rule) { return describe_number(false, rule); }
  static double read(const Json& value, const Rule& rule, std::string_view where) {
    return read_number(value, rule, where);
  }
  static Json write(double value, const Rule&) { return value; }
  static Json from_text(std::string_view text) { return parse_loose(text); }
};

template <>
struct Codec<int64_t> {
  static std::string type(const Rule& rule) { return describe_number(true, rule); }
  static int64_t read(const Json& value, const Rule& rule, std::string_view where) {
    return read_whole_number(value, rule, where);
  }
  static Json write(int64_t value, const Rule&) { return value; }
  static Json from_text(std::string_view text) { return parse_loose(text); }
};

template <>
struct Codec<uint64_t> {
  static std::string type(const Rule&) { return describe_number(true, kNotNegative); }
  static uint64_t read(const Json& value, const Rule&, std::string_view where) {
    return read_seed(value, where);
  }
  static Json write(uint64_t value, const Rule&) { return value; }
  static Json from_text(std::string_view text) { return parse_loose(text); }
};

template <>
struct Codec<std::string> {
  static std::string type(const Rule&) { return "a string"; }
  static std::string read(const Json& value, const Rule&, std::string_view where);
  static Json write(const std::string& value, const Rule&) { return value; }
  static Json from_text(std::string_view text);
};

template <>
struct Codec<std::vector<std::string>> {
  static std::string type(const Rule&) { return "a list of strings"; }
  static std::vector<std::string> read(const Json& value, const Rule&, std::string_view where) {
    return read_strings(value, where);
  }
  static Json write(const std::vector<std::string>& value, const Rule&) { return value; }
  static Json from_text(std::string_view text);
};

template <class T>
struct Codec<std::optional<T>> {
  static std::string type(const Rule& rule) { return Codec<T>::type(rule) + describe_unset(rule); }
  static std::optional<T> read(const Json& value, const Rule& rule, std::string_view where) {
    const bool unset = value.is_null() || (!rule.unset_word.empty() && value == std::string(rule.unset_word));
    if (unset) return std::nullopt;
    return Codec<T>::read(value, rule, where);
  }
  static Json write(const std::optional<T>& value, const Rule& rule) {
    if (value) return Codec<T>::write(*value, rule);
    return rule.unset_word.empty() ? Json(nullptr) : Json(std::string(rule.unset_word));
  }
  static Json from_text(std::string_view text) {
    return text == "null" ? Json(nullptr) : Codec<T>::from_text(text);
  }
};

template <class E>
requires std::is_enum_v<E>
struct Codec<E> {
  static std::vector<std::string_view> names() {
    std::vector<std::string_view> result;
    for (const auto& [value, name] : choice_names(E{})) result.push_back(name);
    return result;
  }
  static std::string type(const Rule&) { return describe_choices(names()); }
  static E read(const Json& value, const Rule&, std::string_view where) {
    return choice_names(E{})[read_choice(value, names(), where)].first;
  }
  static Json write(E value, const Rule&) {
    for (const auto& [candidate, name] : choice_names(value)) {
      if (candidate == value) return choice_json(name);
    }
    return nullptr;
  }
  static Json from_text(std::string_view text) { return parse_loose(text); }
};

/// A row of the table. `member` names the field of a Settings: [](auto& s) -> auto& { return s.seed; }.
template <class Member>
Field make_field(std::string key, Member member, std::string meaning, bool changes_trajectory,
                 Rule rule = kAny) {
  using T = std::remove_cvref_t<decltype(member(std::declval<Settings&>()))>;
  Field field;
  field.info = {std::move(key), Codec<T>::type(rule), std::move(meaning), changes_trajectory, {}};
  field.set = [member, rule](Settings& settings, const Json& value, std::string_view where) {
    member(settings) = Codec<T>::read(value, rule, where);
  };
  field.get = [member, rule](const Settings& settings) { return Codec<T>::write(member(settings), rule); };
  field.parse_text = [](std::string_view text, std::string_view) { return Codec<T>::from_text(text); };
  return field;
}

}  // namespace satune
