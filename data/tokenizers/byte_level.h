// GPT-2's alphabet: every byte written as one printable character, the way tokenizer.json spells tokens.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace satune {

/// "Ġthe" -> " the". Nothing when some character is not of the alphabet.
std::optional<std::string> from_byte_level(std::string_view text);

/// " the" -> "Ġthe".
std::string to_byte_level(std::string_view bytes);

}  // namespace satune
