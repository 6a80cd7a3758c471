#include "trainer/commands/number_checks.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>

namespace satune {
namespace {

template <typename T>
std::optional<T> whole_text_as(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

CLI::Validator number_check(const char* name, const char* expected, bool (*holds)(double)) {
  return CLI::Validator(
      [expected, holds](const std::string& text) {
        const auto value = whole_text_as<double>(text);
        if (value && std::isfinite(*value) && holds(*value)) return std::string();
        return fmt::format("found {}, expected {}", text, expected);
      },
      name);
}

}  // namespace

CLI::Validator not_negative() {
  return number_check(">=0", "a number of 0 or more", [](double value) { return value >= 0; });
}

CLI::Validator positive() {
  return number_check(">0", "a number above 0", [](double value) { return value > 0; });
}

CLI::Validator seed_number() {
  return CLI::Validator(
      [](const std::string& text) {
        if (whole_text_as<uint64_t>(text)) return std::string();
        return fmt::format("found {}, expected a whole number from 0 to 2^64 - 1", text);
      },
      "SEED");
}

}  // namespace satune
