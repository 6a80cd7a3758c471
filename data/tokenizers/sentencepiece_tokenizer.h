// SentencePiece models (Llama-2's tokenizer.model) through the sentencepiece library.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "data/tokenizer.h"
#include "data/tokenizers/special_tokens.h"

namespace satune {

/// A tokenizer over a serialized SentencePiece ModelProto. `path` names it in errors. Ids are those of
/// SentencePieceProcessor::Encode after ill-formed UTF-8 is replaced. decode(ids, true) is
/// SentencePieceProcessor::Decode (leading dummy prefix removed, control pieces invisible, unk " ⁇ ");
/// decode(ids, false) is the same with the special tokens' texts put in. Added tokens with ids beyond the
/// model's pieces are known to special_id, decode and vocab_size; encode never yields them.
/// Throws BadInput when the bytes are no SentencePiece model or bos/eos name no token.
std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const std::filesystem::path& path,
                                                        std::string_view model,
                                                        const SpecialTokens& special_tokens);

}  // namespace satune
