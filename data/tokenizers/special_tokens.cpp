#include "data/tokenizers/special_tokens.h"

#include <algorithm>
#include <charconv>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "data/fingerprint.h"
#include "data/tokenizers/token_table.h"

namespace satune {
namespace {

std::string token_text(const Json& value, const std::string& where) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  throw bad_input(where, describe_json(&value), "a string or an object with \"content\"");
}

void read_setting(const Json& file, const char* key, const std::string& source, TokenSetting& setting) {
  if (setting.given || !file.contains(key)) return;
  const Json& value = file[key];
  setting.given = true;
  setting.source = source + ": " + key;
  if (!value.is_null()) setting.text = token_text(value, setting.source);
}

void read_add_bos(const Json& file, const std::string& source, std::optional<bool>& add_bos) {
  const auto found = file.find("add_bos_token");
  if (add_bos || found == file.end() || found->is_null()) return;
  if (!found->is_boolean())
    throw bad_input(source + ": add_bos_token", describe_json(&*found), "true or false");
  add_bos = found->get<bool>();
}

int32_t parse_id(const std::string& text, const std::string& where) {
  int32_t id = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size() || id < 0) {
    throw bad_input(where, "\"" + text + "\"", "a token id");
  }
  return id;
}

void add_token(std::vector<AddedToken>& added, AddedToken token) {
  const auto same_id = [&](const AddedToken& other) { return other.id == token.id; };
  if (std::none_of(added.begin(), added.end(), same_id)) added.push_back(std::move(token));
}

void read_added_tokens_decoder(const Json& file, const std::string& source, std::vector<AddedToken>& added) {
  if (!file.contains("added_tokens_decoder")) return;
  const std::string where = source + ": added_tokens_decoder";
  const Json& table = file["added_tokens_decoder"];
  if (!table.is_object()) throw bad_input(where, describe_json(&table), "an object of id: token");
  for (const auto& [key, value] : table.items()) {
    const std::string entry = where + "." + key;
    const bool special = !value.is_object() || value.value("special", Json(true)) != Json(false);
    add_token(added, {parse_id(key, entry), token_text(value, entry), special});
  }
}

void read_added_tokens_file(const std::filesystem::path& path, std::vector<AddedToken>& added) {
  if (!file_exists(path)) return;
  const Json file = read_json_file(path);
  if (!file.is_object()) throw bad_input(path.string(), describe_json(&file), "an object of token: id");
  for (const auto& [text, id] : file.items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      throw bad_input(path.string() + ": " + text, describe_json(&id), "a token id");
    }
    add_token(added, {id.get<int32_t>(), text, true});
  }
}

}  // namespace

SpecialTokens read_special_tokens(const std::filesystem::path& directory) {
  SpecialTokens tokens;
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const std::filesystem::path path = directory / name;
    if (!file_exists(path)) continue;
    const Json file = read_json_file(path);
    if (!file.is_object()) throw bad_input(path.string(), describe_json(&file), "an object");
    read_setting(file, "bos_token", path.string(), tokens.bos);
    read_setting(file, "eos_token", path.string(), tokens.eos);
    read_add_bos(file, path.string(), tokens.add_bos);
    read_added_tokens_decoder(file, path.string(), tokens.added);
  }
  read_added_tokens_file(directory / "added_tokens.json", tokens.added);
  std::sort(tokens.added.begin(), tokens.added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return tokens;
}

std::string content_fingerprint(std::string_view kind, std::string_view content,
                                const std::vector<AddedToken>& added) {
  Sha256 hash;
  hash.update_field(kind);
  // SHA-256 over a tokenizer.json of 17 MB would be a third of the time to load it.
  hash.update_field(content.size());
  hash.update_field(hash_bytes(content));
  for (const AddedToken& token : added) {
    hash.update_field(token.text);
    hash.update_field(static_cast<uint64_t>(token.id));
    hash.update_field(static_cast<uint64_t>(token.special));
  }
  return hash.hex();
}

}  // namespace satune
