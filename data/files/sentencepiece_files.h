// What tells a SentencePiece tokenizer.model, and what tokenizer_config.json says beside one. Here because
// both the tokenizers and the export of a model directory, which know nothing of each other, write and read
// it.
#pragma once

#include <string_view>

#include "data/files/json.h"

namespace satune {

/// Whether these bytes of a tokenizer.model begin like a SentencePiece ModelProto (and not like a rank file).
bool looks_like_sentencepiece(std::string_view model);

/// tokenizer_config.json of a Llama tokenizer as transformers writes it. `legacy`: the dummy prefix also
/// after special tokens.
Json sentencepiece_tokenizer_config(bool legacy);

}  // namespace satune
