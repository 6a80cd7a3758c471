// Settings as text: the resolved config, the commented one, and what differs from a saved one.
#include <fmt/format.h>

#include <algorithm>

#include "trainer/settings_field.h"

namespace satune {
namespace {

struct Path {
  std::string group, name;  // "sharing", "layers"; or "", "seed"
};

Path split_key(const std::string& key) {
  const size_t dot = key.find('.');
  return dot == std::string::npos ? Path{"", key} : Path{key.substr(0, dot), key.substr(dot + 1)};
}

// nullptr where the saved config lacks the key.
const Json* find_saved(const Json& saved, const std::string& key) {
  const Path path = split_key(key);
  const Json* object = &saved;
  if (!path.group.empty()) {
    if (!saved.is_object() || !saved.contains(path.group)) return nullptr;
    object = &saved[path.group];
  }
  return object->is_object() && object->contains(path.name) ? &(*object)[path.name] : nullptr;
}

std::string comment(const Field& field, std::string_view indent) {
  const Json default_value = field.get(Settings{});
  const std::string tail = field.required ? "required" : fmt::format("default {}", default_value.dump());
  return fmt::format("{}// {} [{}; {}]\n", indent, field.info.meaning, field.info.type, tail);
}

bool interchangeable(const Field& field, const Json& before, const Json& after) {
  const std::vector<std::string>& values = field.info.interchangeable;
  const auto is_one = [&](const Json& value) {
    return std::any_of(values.begin(), values.end(), [&](const std::string& name) { return value == name; });
  };
  return is_one(before) && is_one(after);
}

}  // namespace

Json settings_json(const Settings& settings) {
  Json result = Json::object();
  for (const Field& field : settings_table()) {
    const Path path = split_key(field.info.key);
    Json& object = path.group.empty() ? result : result[path.group];
    object[path.name] = field.get(settings);
  }
  return result;
}

std::string print_config(const Settings& settings) {
  std::string text = "{\n", group;
  const std::vector<Field>& table = settings_table();
  for (size_t i = 0; i < table.size(); ++i) {
    const Path path = split_key(table[i].info.key);
    if (!table[i].section.empty())
      text += fmt::format("{}  // --- {} ---\n", i == 0 ? "" : "\n", table[i].section);
    if (path.group != group && !path.group.empty()) text += fmt::format("  \"{}\": {{\n", path.group);
    group = path.group;
    const std::string_view indent = group.empty() ? "  " : "    ";
    const std::string next_group = i + 1 < table.size() ? split_key(table[i + 1].info.key).group : "";
    const bool closes = !group.empty() && next_group != group;
    const bool last = i + 1 == table.size();
    text += comment(table[i], indent);
    text += fmt::format("{}\"{}\": {}{}\n", indent, path.name, table[i].get(settings).dump(),
                        closes || last ? "" : ",");
    if (closes) text += fmt::format("  }}{}\n", last ? "" : ",");
  }
  return text + "}\n";
}

std::vector<std::string> trajectory_changes(const Json& old, const Settings& now) {
  std::vector<std::string> changes;
  for (const Field& field : settings_table()) {
    if (!field.info.changes_trajectory) continue;
    const Json* saved = find_saved(old, field.info.key);
    const Json before = saved ? *saved : field.get(Settings{}), after = field.get(now);
    if (before != after && !interchangeable(field, before, after))
      changes.push_back(fmt::format("{}: {} -> {}", field.info.key, before.dump(), after.dump()));
  }
  return changes;
}

}  // namespace satune
