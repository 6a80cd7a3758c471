#include "data/template_file.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "data/files/error.h"
#include "data/files/json.h"

namespace satune {
namespace {

TemplateStrings alpaca() {
  return {.prompt_with_input =
              "Below is an instruction that describes a task, paired with an input that provides further "
              "context. "
              "Write a response that appropriately completes the request.\n\n"
              "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n",
          .prompt_without_input =
              "Below is an instruction that describes a task. "
              "Write a response that appropriately completes the request.\n\n"
              "### Instruction:\n{instruction}\n\n",
          .response_header = "### Response:\n",
          .response_suffix = "",
          .end_token = "",
          .special_tokens = {},
          .trim = false};
}

TemplateStrings alpaca_stanford() {
  TemplateStrings strings = alpaca();
  strings.response_header = "### Response:";
  return strings;
}

TemplateStrings llama3() {
  const std::string user = "<|start_header_id|>user<|end_header_id|>\n\n";
  return {.prompt_with_input = user + "{instruction}\n{input}<|eot_id|>",
          .prompt_without_input = user + "{instruction}<|eot_id|>",
          .response_header = "<|start_header_id|>assistant<|end_header_id|>\n\n",
          .response_suffix = "",
          .end_token = "<|eot_id|>",
          .special_tokens = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
          .trim = true};
}

constexpr std::array<std::pair<std::string_view, TemplateStrings (*)()>, 3> kBuiltIn = {
    {{"alpaca", alpaca}, {"alpaca_stanford", alpaca_stanford}, {"llama3", llama3}}};

constexpr std::array<std::pair<std::string_view, std::string TemplateStrings::*>, 5> kTextKeys = {
    {{"prompt_with_input", &TemplateStrings::prompt_with_input},
     {"prompt_without_input", &TemplateStrings::prompt_without_input},
     {"response_header", &TemplateStrings::response_header},
     {"response_suffix", &TemplateStrings::response_suffix},
     {"end_token", &TemplateStrings::end_token}}};

constexpr std::string_view kName = "name";

std::string text_of(const Json& value, const std::string& where) {
  if (!value.is_string()) throw bad_input(where, describe_json(&value), "a string");
  return value.get<std::string>();
}

void read_key(const std::string& key, const Json& value, const std::string& source,
              TemplateStrings& strings) {
  const std::string where = fmt::format("{}: {}", source, key);
  for (const auto& [name, member] : kTextKeys) {
    if (key != name) continue;
    strings.*member = text_of(value, where);
    return;
  }
  if (key == "special_tokens") {
    if (!value.is_array()) throw bad_input(where, describe_json(&value), "an array of strings");
    for (const Json& token : value) strings.special_tokens.push_back(text_of(token, where));
  } else if (key == "trim") {
    if (!value.is_boolean()) throw bad_input(where, describe_json(&value), "true or false");
    strings.trim = value.get<bool>();
  } else if (key == kName) {
    text_of(value, where);
  } else {
    std::vector<std::string> known = {"special_tokens", "trim"};
    for (const auto& [name, member] : kTextKeys) known.emplace_back(name);
    const std::string nearest = nearest_name(key, known);
    throw bad_input(
        source, fmt::format("the key \"{}\"", key),
        nearest.empty() ? fmt::format("one of {}", fmt::join(known, ", ")) : fmt::format("\"{}\"", nearest));
  }
}

}  // namespace

std::optional<TemplateStrings> built_in_template(std::string_view name) {
  for (const auto& [known, strings] : kBuiltIn) {
    if (name == known) return strings();
  }
  return std::nullopt;
}

std::vector<std::string> built_in_template_names() {
  std::vector<std::string> names;
  for (const auto& [name, strings] : kBuiltIn) names.emplace_back(name);
  return names;
}

TemplateStrings read_template_file(const std::filesystem::path& path) {
  return parse_template_strings(read_json_file(path, {.allow_comments = true}), path.string());
}

TemplateStrings parse_template_strings(const Json& json, const std::string& source) {
  if (!json.is_object()) throw bad_input(source, describe_json(&json), "an object");
  TemplateStrings strings;
  for (const auto& item : json.items()) read_key(item.key(), item.value(), source, strings);
  for (const std::string_view required : {"prompt_with_input", "prompt_without_input"}) {
    if (!json.contains(required))
      throw bad_input(source, fmt::format("no key \"{}\"", required), "a string there");
  }
  return strings;
}

Json template_json(const PromptTemplate& prompt_template) {
  const TemplateStrings& strings = prompt_template.strings();
  Json json = {{kName, prompt_template.name()}};
  for (const auto& [key, member] : kTextKeys) json[key] = strings.*member;
  json["special_tokens"] = strings.special_tokens;
  json["trim"] = strings.trim;
  return json;
}

PromptTemplate parse_template(const Json& json, const std::string& source) {
  TemplateStrings strings = parse_template_strings(json, source);
  return PromptTemplate(json.contains(kName) ? json.at(kName).get<std::string>() : source,
                        std::move(strings));
}

}  // namespace satune
