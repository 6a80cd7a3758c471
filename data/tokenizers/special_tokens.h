// What a Hugging Face directory says about special tokens beside the tokenizer's own file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace satune {

struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool special = true;
};

/// A bos_token or eos_token setting: absent, explicitly null, or a token's text. `source` is the file that
/// says so, for errors.
struct TokenSetting {
  bool given = false;
  std::optional<std::string> text;
  std::string source;
};

struct SpecialTokens {
  TokenSetting bos, eos;
  std::optional<bool> add_bos;    ///< add_bos_token
  std::optional<int32_t> first;   ///< what the post_processor of tokenizer.json puts before a text
  std::vector<AddedToken> added;  ///< added_tokens_decoder, then added_tokens.json; by id
};

/// tokenizer_config.json first, special_tokens_map.json for what that one leaves out; neither needs to
/// exist. A token is a string or an AddedToken object. Throws BadInput that names file and key.
SpecialTokens read_special_tokens(const std::filesystem::path& directory);

/// What Tokenizer::fingerprint() is made of: the kind of file, its content and the tokens added to it.
std::string content_fingerprint(std::string_view kind, std::string_view content,
                                const std::vector<AddedToken>& added);

}  // namespace satune
