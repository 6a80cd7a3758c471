#include <array>
#include <string_view>

#include "data/files/atomic_file.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "data/files/sentencepiece_files.h"
#include "model/files/export_python.h"
#include "model/files/hf_directory.h"

namespace satune {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTokenizerConfig = "tokenizer_config.json";
constexpr std::string_view kChatTemplate = "chat_template.jinja";
constexpr std::array<std::string_view, 6> kTokenizerFiles = {
    "tokenizer.model",   "tokenizer.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json",     "merges.txt"};

void copy_atomic(const fs::path& from, const fs::path& to, FileOps& ops) {
  const MappedFile source(from);
  AtomicFile target(to, ops);
  target.write(source.bytes());
  target.commit();
}

Json one_or_list(const std::vector<int64_t>& ids) {
  return ids.size() == 1 ? Json(ids.front()) : Json(ids);
}

Json generation_config_json(const ModelConfig& config, const ExportOptions& options) {
  Json json = Json::object();
  json["do_sample"] = false;
  if (config.bos_token_id) json["bos_token_id"] = *config.bos_token_id;
  const auto& eos = options.eos_token_ids.empty() ? config.eos_token_ids : options.eos_token_ids;
  if (!eos.empty()) json["eos_token_id"] = one_or_list(eos);
  if (config.pad_token_id) json["pad_token_id"] = *config.pad_token_id;
  if (!options.template_name.empty()) json["satune_template"] = options.template_name;
  return json;
}

// The text of a special token as tokenizer.json lists it; nothing if it does not.
std::optional<std::string> added_token(const Json& tokenizer, std::optional<int64_t> id) {
  if (!id || !tokenizer.is_object() || !tokenizer.contains("added_tokens")) return std::nullopt;
  for (const Json& token : tokenizer["added_tokens"]) {
    if (token.value("id", int64_t{-1}) == *id) return token.value("content", std::string());
  }
  return std::nullopt;
}

bool has_sentencepiece_model(const fs::path& source) {
  const fs::path model = source / "tokenizer.model";
  return file_exists(model) && looks_like_sentencepiece(MappedFile(model).text());
}

// tokenizer_config.json for a source that has none: without tokenizer_class, AutoTokenizer looks at
// config.json's model_type and knows none for "sa_llama".
Json default_tokenizer_config(const fs::path& source, const ModelConfig& config) {
  if (has_sentencepiece_model(source)) return sentencepiece_tokenizer_config(/*legacy=*/true);
  Json json = Json::object();
  json["tokenizer_class"] = "PreTrainedTokenizerFast";
  json["clean_up_tokenization_spaces"] = false;
  if (!file_exists(source / "tokenizer.json")) return json;
  const Json tokenizer = read_json_file(source / "tokenizer.json");
  if (auto bos = added_token(tokenizer, config.bos_token_id)) json["bos_token"] = *bos;
  if (!config.eos_token_ids.empty()) {
    if (auto eos = added_token(tokenizer, config.eos_token_ids.front())) json["eos_token"] = *eos;
  }
  return json;
}

// tokenizer_config.json as it goes with the trained chat template; nothing where it is as it should be.
std::optional<Json> config_for_chat_template(const fs::path& source) {
  Json json = read_json_file(source / kTokenizerConfig);
  if (!json.is_object()) return std::nullopt;
  // Readers of older versions prefer this key to the file, and it would be another template than the trained
  // one.
  bool changed = json.erase("chat_template") > 0;
  // Without it transformers drops the dummy prefix after "<s>", and no prompt has the ids of training.
  if (has_sentencepiece_model(source) && json.value("legacy", Json()) != Json(true)) {
    json["legacy"] = true;
    changed = true;
  }
  return changed ? std::optional(json) : std::nullopt;
}

void write_tokenizer_config(const fs::path& directory, const ModelConfig& config,
                            const ExportOptions& options, FileOps& ops) {
  const fs::path source = options.tokenizer_source / kTokenizerConfig;
  const fs::path target = directory / kTokenizerConfig;
  if (!file_exists(source)) {
    write_file_atomic(target, write_json(default_tokenizer_config(options.tokenizer_source, config)), ops);
    return;
  }
  const auto adapted =
      options.chat_template ? config_for_chat_template(options.tokenizer_source) : std::nullopt;
  if (!adapted) return copy_atomic(source, target, ops);
  write_file_atomic(target, write_json(*adapted), ops);
}

void write_tokenizer_files(const fs::path& directory, const ModelConfig& config, const ExportOptions& options,
                           FileOps& ops) {
  if (options.tokenizer_source.empty()) return;
  bool any = false;
  for (const std::string_view name : kTokenizerFiles) {
    const fs::path source = options.tokenizer_source / name;
    if (!file_exists(source)) continue;
    copy_atomic(source, directory / name, ops);
    any = true;
  }
  if (any) write_tokenizer_config(directory, config, options, ops);
  if (!options.chat_template && file_exists(options.tokenizer_source / kChatTemplate)) {
    copy_atomic(options.tokenizer_source / kChatTemplate, directory / kChatTemplate, ops);
  }
}

}  // namespace

void write_export_files(const fs::path& directory, const ModelConfig& config, const ExportOptions& options,
                        FileOps& ops) {
  const auto write = [&](std::string_view name, std::string_view text) {
    write_file_atomic(directory / name, text, ops);
  };
  write("config.json", write_json(model_config_json(config)));
  write("generation_config.json", write_json(generation_config_json(config, options)));
  write_tokenizer_files(directory, config, options, ops);
  if (options.chat_template) write(kChatTemplate, *options.chat_template);
  if (options.template_file) write(kTemplateFile, *options.template_file);
  if (config.sharing.empty()) return;
  for (const EmbeddedFile& file : export_python_files()) write(file.name, file.text);
}

}  // namespace satune
