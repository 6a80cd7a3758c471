// Llama-3's pre-tokenizer pattern as a hand-written scanner.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace satune {

/// The pattern as it stands in Llama-3's tokenizer.json and in llama-models' tokenizer.
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Appends the successive matches of kLlama3Pattern in `text` (well-formed UTF-8). The matches cover the
/// text without gaps.
void split_llama3(std::string_view text, std::vector<std::string_view>& pieces);

}  // namespace satune
