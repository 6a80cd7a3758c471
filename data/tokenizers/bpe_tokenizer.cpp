#include "data/tokenizers/bpe_tokenizer.h"

#include <algorithm>
#include <map>

#include "data/files/error.h"
#include "data/tokenizers/added_tokens.h"
#include "data/tokenizers/byte_level.h"
#include "data/tokenizers/code_points.h"
#include "data/utf8.h"

namespace satune {
namespace {

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeDefinition definition);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special) const override;
  int32_t vocab_size() const override { return definition_.tokens->size(); }
  std::optional<int32_t> bos_id() const override { return definition_.bos; }
  std::optional<int32_t> eos_id() const override { return definition_.eos; }
  bool adds_bos() const override { return definition_.bos && definition_.adds_bos; }
  std::optional<int32_t> special_id(std::string_view text) const override;
  std::string token_text(int32_t id) const override { return std::string(definition_.tokens->bytes(id)); }
  std::string_view kind() const override { return "bpe"; }
  std::string fingerprint() const override { return definition_.fingerprint; }

 private:
  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const;

  BpeDefinition definition_;
  BytePairEncoder encoder_;
  AddedTokenFinder finder_;
  std::vector<bool> special_;  // by id
  std::map<std::string, int32_t, std::less<>> special_ids_;
};

BytePairEncoder make_encoder(BpeDefinition& definition) {
  if (definition.merges_by_rank) return BytePairEncoder(*definition.tokens);
  return BytePairEncoder(*definition.tokens, std::move(definition.pairs), definition.words);
}

BpeTokenizer::BpeTokenizer(BpeDefinition definition)
    : definition_(std::move(definition)),
      encoder_(make_encoder(definition_)),
      finder_(definition_.added),
      special_(static_cast<size_t>(definition_.tokens->size())) {
  for (const AddedToken& token : definition_.added) {
    if (!token.special) continue;
    special_[static_cast<size_t>(token.id)] = true;
    special_ids_.emplace(token.text, token.id);
  }
  for (const AddedToken& alias : definition_.aliases) special_ids_.emplace(alias.text, alias.id);
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  std::string repaired;
  if (find_invalid_utf8(text)) text = repaired = replace_invalid_utf8(text);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  for (const auto& [part, id] : finder_.split(text)) {
    if (id) {
      ids.push_back(*id);
    } else {
      encode_plain(part, ids);
    }
  }
  return ids;
}

void BpeTokenizer::encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
  const Words words = definition_.pre_tokenizer->split(text);
  for (const std::string_view word : words.views) encoder_.encode(word, ids);
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!definition_.tokens->has(id) || (skip_special && special_[static_cast<size_t>(id)])) continue;
    bytes += definition_.tokens->bytes(id);
  }
  return find_invalid_utf8(bytes) ? replace_invalid_utf8(bytes) : bytes;
}

std::optional<int32_t> BpeTokenizer::special_id(std::string_view text) const {
  const auto found = special_ids_.find(text);
  return found == special_ids_.end() ? std::nullopt : std::optional<int32_t>(found->second);
}

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeDefinition definition) {
  return std::make_unique<BpeTokenizer>(std::move(definition));
}

std::optional<int32_t> resolve_token(const TokenSetting& setting, const BpeDefinition& definition,
                                     std::initializer_list<std::string_view> usual) {
  const auto added_id = [&](std::string_view text) -> std::optional<int32_t> {
    for (const std::vector<AddedToken>* list : {&definition.added, &definition.aliases}) {
      for (const AddedToken& token : *list) {
        if (token.text == text) return token.id;
      }
    }
    return std::nullopt;
  };
  if (!setting.given) {
    for (const std::string_view text : usual) {
      if (const auto id = added_id(text)) return id;
    }
    return std::nullopt;
  }
  if (!setting.text) return std::nullopt;
  if (const auto id = added_id(*setting.text)) return id;
  const int32_t id = definition.tokens->find(from_byte_level(*setting.text).value_or(*setting.text));
  if (id < 0) throw bad_input(setting.source, "\"" + *setting.text + "\"", "a token of the tokenizer");
  return id;
}

}  // namespace satune
