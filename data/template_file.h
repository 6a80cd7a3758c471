// Where the strings of a prompt template come from: the built-in table, or a JSON object (a file, or what an
// export or a snapshot says it was trained with).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/files/json.h"
#include "data/prompt_template.h"

namespace satune {

/// "alpaca", "alpaca_stanford" and "llama3".
std::optional<TemplateStrings> built_in_template(std::string_view name);
std::vector<std::string> built_in_template_names();

/// A JSON object whose keys are the fields of TemplateStrings, and `name`, which is not read here. Throws
/// BadInput naming file and key for an unknown key (with the nearest known one), a missing prompt or a value
/// of another type.
TemplateStrings read_template_file(const std::filesystem::path& path);

/// The same of an object; `source` names it in errors.
TemplateStrings parse_template_strings(const Json& json, const std::string& source);

/// The template as a template file says it: every key, and `name`. What a run's exports and snapshots carry,
/// so that they mean the same where the file is not, or has changed.
Json template_json(const PromptTemplate& prompt_template);

/// The other way; without `name` the template is called `source`. Throws BadInput that names `source` and
/// key.
PromptTemplate parse_template(const Json& json, const std::string& source);

}  // namespace satune
