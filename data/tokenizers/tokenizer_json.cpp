#include <algorithm>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/tokenizers/bpe_tokenizer.h"
#include "data/tokenizers/byte_level.h"
#include "data/tokenizers/json_access.h"
#include "data/tokenizers/post_processor.h"
#include "data/tokenizers/tokenizer_json_contents.h"

namespace satune {
namespace {

/// The value is absent, null or one of the harmless ones; anything else would change ids.
void expect_unset(const nlohmann::json& object, const char* key, const std::string& where,
                  std::initializer_list<nlohmann::json> harmless) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return;
  if (std::find(harmless.begin(), harmless.end(), *found) != harmless.end()) return;
  throw bad_input(where + "." + key, found->dump().substr(0, 60), "null: this kind is not supported");
}

std::string type_of(const nlohmann::json& value) {
  if (value.is_object() && value.contains("type") && value["type"].is_string()) return value["type"];
  return value.type_name();
}

void check_model(const nlohmann::json& file, const std::string& path) {
  const nlohmann::json& model = member(file, "model", path + ": tokenizer");
  const std::string where = path + ": model";
  if (!model.is_object()) throw bad_input(where, model.type_name(), "an object");
  const std::string type = model.contains("type") ? string_member(model, "type", where) : "BPE";
  if (type != "BPE") throw bad_input(where + ".type", type, "BPE over bytes (or a tokenizer.model)");
  if (bool_member(model, "byte_fallback", where, false)) {
    throw bad_input(where + ".byte_fallback", "true, which is SentencePiece's kind of BPE",
                    "byte-level BPE; put the tokenizer.model it was made from beside it");
  }
  expect_unset(model, "dropout", where, {0.0});
  expect_unset(model, "continuing_subword_prefix", where, {""});
  expect_unset(model, "end_of_word_suffix", where, {""});
}

void check_normalizer_and_decoder(const nlohmann::json& file, const std::string& path) {
  const nlohmann::json normalizer = file.value("normalizer", nlohmann::json());
  const bool empty_sequence =
      type_of(normalizer) == "Sequence" && normalizer.value("normalizers", nlohmann::json()).empty();
  if (!normalizer.is_null() && !empty_sequence) {
    throw bad_input(path + ": normalizer", type_of(normalizer), "none: normalizers are not supported");
  }
  const std::string decoder = type_of(file.value("decoder", nlohmann::json()));
  if (decoder != "ByteLevel") throw bad_input(path + ": decoder", decoder, "ByteLevel");
}

std::vector<AddedToken> read_added_tokens(const nlohmann::json& file, const std::string& path) {
  std::vector<AddedToken> added;
  const nlohmann::json list = file.value("added_tokens", nlohmann::json::array());
  if (!list.is_array()) throw bad_input(path + ": added_tokens", list.type_name(), "an array");
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("{}: added_tokens[{}]", path, i);
    const nlohmann::json& id = member(list[i], "id", where);
    if (!id.is_number_integer() || id < 0 || id > 1 << 24)
      throw bad_input(where + ".id", id.dump(), "a token id");
    AddedToken token{id.get<int32_t>(), string_member(list[i], "content", where),
                     bool_member(list[i], "special", where, false)};
    if (token.text.empty()) throw bad_input(where + ".content", "an empty string", "a token");
    for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
      if (!token.special && bool_member(list[i], flag, where, false)) {
        throw bad_input(where + "." + flag, "true", "false for a token that is not special");
      }
    }
    added.push_back(std::move(token));
  }
  return added;
}

/// Vocabulary, then added tokens. Special tokens are hidden from text, wherever they stand.
void fill_tokens(const std::string& path, const TokenizerJsonContents& contents, BpeDefinition& definition) {
  TokenTable& tokens = *definition.tokens;
  std::vector<int32_t> special_ids;
  for (const AddedToken& token : definition.added) {
    if (token.special) special_ids.push_back(token.id);
  }
  std::sort(special_ids.begin(), special_ids.end());
  for (const auto& [text, id] : contents.vocab) {
    const std::optional<std::string> bytes = from_byte_level(text);
    const bool special = std::binary_search(special_ids.begin(), special_ids.end(), id);
    const bool added =
        bytes && !special ? tokens.add(id, *bytes) : tokens.add_hidden(id, bytes.value_or(text));
    if (!added) {
      throw bad_input(path + ": model.vocab." + text, fmt::format("id {} or the token again", id),
                      "every token and every id once");
    }
  }
  for (const AddedToken& token : definition.added) {
    const std::string bytes = from_byte_level(token.text).value_or(token.text);
    if (!tokens.add_hidden(token.id, bytes) && tokens.bytes(token.id) != bytes) {
      throw bad_input(path + ": added_tokens", fmt::format("id {} for \"{}\"", token.id, token.text),
                      fmt::format("\"{}\", which has that id", tokens.bytes(token.id)));
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    if (tokens.find({&text, 1}) < 0) {
      throw bad_input(path + ": model.vocab", fmt::format("no token for the byte 0x{:02x}", byte),
                      "all 256 bytes");
    }
  }
}

PairTable make_pairs(const std::string& path, const TokenizerJsonContents& contents) {
  TokenTable texts;
  for (const auto& [text, id] : contents.vocab) texts.add(id, text);
  PairTable pairs(contents.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < contents.merges.size(); ++rank) {
    const auto& [left, right] = contents.merges[rank];
    joined.assign(left).append(right);
    const int32_t left_id = texts.find(left), right_id = texts.find(right), id = texts.find(joined);
    if (left_id < 0 || right_id < 0 || id < 0) {
      const std::string& missing = left_id < 0 ? left : right_id < 0 ? right : joined;
      throw bad_input(fmt::format("{}: model.merges[{}]", path, rank),
                      "the unknown token \"" + missing + "\"", "tokens of model.vocab");
    }
    pairs.add(left_id, right_id, {static_cast<uint32_t>(rank), id});
  }
  return pairs;
}

}  // namespace

BpeDefinition read_tokenizer_json(const std::filesystem::path& path, const SpecialTokens& special_tokens) {
  const MappedFile file(path);
  const std::string name = path.string();
  const TokenizerJsonContents contents = read_tokenizer_json_contents(name, file.text());
  check_model(contents.rest, name);
  check_normalizer_and_decoder(contents.rest, name);
  BpeDefinition definition;
  definition.pre_tokenizer = std::make_unique<PreTokenizer>(
      member(contents.rest, "pre_tokenizer", name + ": tokenizer"), name + ": pre_tokenizer");
  definition.added = read_added_tokens(contents.rest, name);
  for (const AddedToken& token : special_tokens.added) {
    const auto same = [&](const AddedToken& other) { return other.id == token.id; };
    if (std::none_of(definition.added.begin(), definition.added.end(), same))
      definition.added.push_back(token);
  }
  definition.tokens = std::make_unique<TokenTable>();
  fill_tokens(name, contents, definition);
  definition.pairs = make_pairs(name, contents);
  const bool whole = bool_member(contents.rest["model"], "ignore_merges", name + ": model", false);
  definition.words = whole ? BytePairEncoder::Words::kWholeFirst : BytePairEncoder::Words::kMerge;
  definition.bos = resolve_token(special_tokens.bos, definition, {"<|begin_of_text|>", "<s>"});
  definition.eos =
      resolve_token(special_tokens.eos, definition, {"<|end_of_text|>", "</s>", "<|endoftext|>"});
  const std::optional<int32_t> first = first_token(contents.rest, name);
  definition.adds_bos = first && first == definition.bos;
  definition.fingerprint = content_fingerprint("tokenizer.json", file.text(), definition.added);
  return definition;
}

}  // namespace satune
