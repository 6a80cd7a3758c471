// Options that say under which keys the parts of a record stand.
#pragma once

#include <string>
#include <vector>

#include "data/records.h"

namespace satune {

/// "instruction=question" and its like. `option` names the option in errors. Throws BadInput for another part
/// than instruction, input, output and text, and for an empty key.
ColumnNames parse_columns(const std::string& option, const std::vector<std::string>& mappings);

}  // namespace satune
