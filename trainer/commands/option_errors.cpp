#include "trainer/commands/option_errors.h"

#include <optional>
#include <string_view>
#include <utility>

#include "data/files/error.h"

namespace satune {
namespace {

/// What stands before and after the first `separator`.
std::optional<std::pair<std::string, std::string>> split(std::string_view text, std::string_view separator) {
  const size_t at = text.find(separator);
  if (at == std::string_view::npos) return std::nullopt;
  return std::pair(std::string(text.substr(0, at)), std::string(text.substr(at + separator.size())));
}

std::string number_of(const CLI::App& command, const std::string& name) {
  const CLI::Option* option = command.get_option_no_throw(name);
  const bool real = option != nullptr && option->get_type_name().find("FLOAT") != std::string::npos;
  return real ? "a number" : "a whole number";
}

}  // namespace

std::string describe_option_error(const CLI::App& command, const CLI::ParseError& error) {
  const std::string_view said = error.what();
  constexpr std::string_view kNotConverted = "Could not convert: ";
  if (said.starts_with(kNotConverted)) {
    if (const auto parts = split(said.substr(kNotConverted.size()), " = "))
      return bad_input(parts->first, parts->second, number_of(command, parts->first)).what();
  }
  if (const auto parts = split(said, ": Value ")) {
    if (const auto range = split(parts->second, " not in range "))
      return bad_input(parts->first, range->first,
                       number_of(command, parts->first) + " from " + range->second)
          .what();
  }
  if (const auto parts = split(said, ": 1 required "); parts && said.ends_with(" missing"))
    return bad_input(parts->first, "nothing", "a value behind it").what();
  if (const auto parts = split(said, ": At Most 1 required but received "))
    return bad_input(parts->first, parts->second + " of them", "one").what();
  return std::string(said);
}

}  // namespace satune
