// The few facts about UTF-8 text that records and templates need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace satune {

/// Offset of the first byte that is not part of well-formed UTF-8 (no overlong forms, no surrogates, nothing
/// above U+10FFFF).
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// `text` without white space at either end, as Python's str.strip() and so Jinja's trim see it: Unicode
/// White_Space and the separators U+001C..U+001F.
std::string_view trim_white_space(std::string_view text);

/// Stretches of such white space in `text`, as long as they go.
int64_t count_white_space_runs(std::string_view text);

}  // namespace satune
