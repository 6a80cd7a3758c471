#include "trainer/commands/column_options.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "data/files/error.h"
#include "data/files/json.h"

namespace satune {

ColumnNames parse_columns(const std::string& option, const std::vector<std::string>& mappings) {
  ColumnNames columns;
  const std::array<std::pair<std::string_view, std::string ColumnNames::*>, 4> names = {
      {{"instruction", &ColumnNames::instruction},
       {"input", &ColumnNames::input},
       {"output", &ColumnNames::output},
       {"text", &ColumnNames::text}}};
  for (const std::string& mapping : mappings) {
    const size_t equals = mapping.find('=');
    const auto known = std::find_if(names.begin(), names.end(), [&](const auto& name) {
      return equals != std::string::npos && name.first == std::string_view(mapping).substr(0, equals);
    });
    if (known == names.end() || equals + 1 == mapping.size())
      throw bad_input(option, quote_json(mapping), "instruction=KEY, input=KEY, output=KEY or text=KEY");
    columns.*known->second = mapping.substr(equals + 1);
  }
  return columns;
}

}  // namespace satune
