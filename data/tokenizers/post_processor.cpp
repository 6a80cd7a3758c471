#include "data/tokenizers/post_processor.h"

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/tokenizers/json_access.h"
#include "data/tokenizers/tokenizer_json_contents.h"

namespace satune {
namespace {

using nlohmann::json;

int32_t token_id(const json& value, const std::string& where) {
  if (!value.is_number_integer() || value < 0 || value > 1 << 24)
    throw bad_input(where, value.dump().substr(0, 60), "a token id");
  return value.get<int32_t>();
}

/// TemplateProcessing: {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": ...}], "special_tokens":
/// {"<s>": {"ids": [1]}}}
std::optional<int32_t> first_of_template(const json& processor, const std::string& where) {
  const json& single = member(processor, "single", where);
  if (!single.is_array()) throw bad_input(where + ".single", single.type_name(), "an array");
  if (single.empty() || !single[0].is_object() || !single[0].contains("SpecialToken")) return std::nullopt;
  const std::string name = string_member(single[0]["SpecialToken"], "id", where + ".single[0].SpecialToken");
  const std::string tokens = where + ".special_tokens", token = tokens + "." + name;
  const json& ids =
      member(member(member(processor, "special_tokens", where), name.c_str(), tokens), "ids", token);
  if (!ids.is_array() || ids.empty())
    throw bad_input(token + ".ids", ids.dump().substr(0, 60), "an array of ids");
  return token_id(ids[0], token + ".ids[0]");
}

std::optional<int32_t> first_of(const json& processor, const std::string& where) {
  if (processor.is_null()) return std::nullopt;
  const std::string type = string_member(processor, "type", where);
  if (type == "TemplateProcessing") return first_of_template(processor, where);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    const json& cls = member(processor, "cls", where);  // ["<s>", 1]
    if (!cls.is_array() || cls.size() != 2) throw bad_input(where + ".cls", cls.dump(), "a token and its id");
    return token_id(cls[1], where + ".cls[1]");
  }
  if (type != "Sequence") return std::nullopt;
  std::optional<int32_t> first;
  for (const json& each : member(processor, "processors", where))
    if (const auto found = first_of(each, where + ".processors")) first = found;
  return first;
}

}  // namespace

std::optional<int32_t> first_token(const json& tokenizer, const std::string& where) {
  return first_of(tokenizer.value("post_processor", json()), where + ": post_processor");
}

std::optional<int32_t> first_token(const std::filesystem::path& file) {
  const MappedFile mapped(file);
  return first_token(read_tokenizer_json_contents(file.string(), mapped.text()).rest, file.string());
}

}  // namespace satune
