// Where the strings of a prompt template come from: the built-in table, or a JSON file.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/prompt_template.h"

namespace satune {

/// "alpaca", "alpaca_stanford" and "llama3".
std::optional<TemplateStrings> built_in_template(std::string_view name);
std::vector<std::string> built_in_template_names();

/// A JSON object whose keys are the fields of TemplateStrings. Throws BadInput naming file and key for an
/// unknown key (with the nearest known one), a missing prompt or a value of another type.
TemplateStrings read_template_file(const std::filesystem::path& path);

}  // namespace satune
