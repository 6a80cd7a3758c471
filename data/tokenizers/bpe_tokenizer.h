// Byte-level BPE: Llama-3's tokenizer and others of GPT-2's kind.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "data/tokenizers/byte_pair_encoder.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/special_tokens.h"
#include "data/tokenizers/token_table.h"

namespace satune {

/// Everything a byte-level BPE tokenizer consists of, as a file describes it.
struct BpeDefinition {
  std::unique_ptr<TokenTable> tokens;  ///< every byte is a token; special tokens hidden
  PairTable pairs;
  bool merges_by_rank = false;  ///< tiktoken: `pairs` is empty, ids are ranks
  BytePairEncoder::Words words = BytePairEncoder::Words::kMerge;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  /// Tokens beside the vocabulary, by id; those that are not special are found in text before anything else.
  std::vector<AddedToken> added;
  /// Other names of special tokens, for special_id() alone.
  std::vector<AddedToken> aliases;
  std::optional<int32_t> bos, eos;
  bool adds_bos = false;  ///< see Tokenizer::adds_bos(); read only with a bos
  std::string fingerprint;
};

std::unique_ptr<Tokenizer> make_bpe_tokenizer(BpeDefinition definition);

/// Id of the token that a bos_token/eos_token setting names; the first of `usual` that is an added token when
/// nothing is said. Throws BadInput when the named token does not exist.
std::optional<int32_t> resolve_token(const TokenSetting& setting, const BpeDefinition& definition,
                                     std::initializer_list<std::string_view> usual);

/// A tokenizer.json of the tokenizers library. Throws BadInput that names the key for anything that is not
/// byte-level BPE or that would need another normalizer, pre-tokenizer or decoder.
BpeDefinition read_tokenizer_json(const std::filesystem::path& path, const SpecialTokens& special_tokens);

/// A tiktoken rank file ("base64-of-token rank" per line) with Llama-3's pre-tokenizer pattern. Its special
/// tokens are the added_tokens_decoder of `special_tokens`; without one the file must hold Llama-3's 128000
/// ranks, and Llama-3's 256 special tokens follow (the names of 3.1 are known to special_id() too).
/// Throws BadInput that names the line.
BpeDefinition read_rank_file(const std::filesystem::path& path, const SpecialTokens& special_tokens);

}  // namespace satune
