#include "data/files/sentencepiece_files.h"

namespace satune {

bool looks_like_sentencepiece(std::string_view model) {
  // Field 1 (pieces), a length-delimited message, which begins with its own field 1 (the piece's text).
  return model.size() > 4 && model[0] == '\x0A' && (model[2] == '\x0A' || model[3] == '\x0A');
}

Json sentencepiece_tokenizer_config(bool legacy) {
  return {{"tokenizer_class", "LlamaTokenizer"},
          {"bos_token", "<s>"},
          {"eos_token", "</s>"},
          {"unk_token", "<unk>"},
          {"add_bos_token", true},
          {"add_eos_token", false},
          {"legacy", legacy},
          {"clean_up_tokenization_spaces", false}};
}

}  // namespace satune
