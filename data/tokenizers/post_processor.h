// What a tokenizer.json puts around a text after it is encoded.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace satune {

/// Id of the special token that the post_processor puts before a single text; nothing without one. `where`
/// names the file. Throws BadInput for a token that the post_processor does not explain.
std::optional<int32_t> first_token(const nlohmann::json& tokenizer, const std::string& where);

/// The same of a file, of which nothing else is looked at.
std::optional<int32_t> first_token(const std::filesystem::path& file);

}  // namespace satune
