#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/files/sentencepiece_files.h"
#include "data/tokenizer.h"
#include "data/tokenizers/bpe_tokenizer.h"
#include "data/tokenizers/post_processor.h"
#include "data/tokenizers/sentencepiece_tokenizer.h"
#include "data/tokenizers/special_tokens.h"

namespace satune {

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory) {
  const std::filesystem::path model = directory / "tokenizer.model", json = directory / "tokenizer.json";
  if (!file_exists(directory) || !std::filesystem::is_directory(directory)) {
    throw bad_input(directory.string(), "no such directory", "a directory with a tokenizer");
  }
  SpecialTokens special_tokens = read_special_tokens(directory);
  if (file_exists(model)) {
    const MappedFile file(model);
    if (looks_like_sentencepiece(file.text())) {
      if (file_exists(json)) {
        special_tokens.first = first_token(json);
        special_tokens.add_bos = special_tokens.first.has_value();
      }
      return make_sentencepiece_tokenizer(model, file.text(), special_tokens);
    }
  }
  if (file_exists(json)) return make_bpe_tokenizer(read_tokenizer_json(json, special_tokens));
  if (file_exists(model)) return make_bpe_tokenizer(read_rank_file(model, special_tokens));
  throw bad_input(directory.string(), "neither tokenizer.json nor tokenizer.model", "a tokenizer");
}

}  // namespace satune
