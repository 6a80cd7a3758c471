// Text to token ids and back. Plain text never yields a special token: only templates emit those, by id.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace satune {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of plain text (UTF-8), without BOS or EOS. SentencePiece adds its dummy prefix where its model
  /// says so. Text that looks like a special token ("<|eot_id|>", "</s>") is encoded as ordinary text.
  /// Bytes that are not UTF-8 are replaced by U+FFFD first, as Python's errors="replace" does. All members
  /// may be called from several threads at once.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  /// Text of the ids. Special tokens are left out when `skip_special`. Bytes that are not UTF-8 are
  /// replaced by U+FFFD as the reference libraries do. Ids without a token decode to nothing.
  virtual std::string decode(std::span<const int32_t> ids, bool skip_special = false) const = 0;

  /// Highest id + 1, special and added tokens included. A model's vocabulary must be at least this.
  virtual int32_t vocab_size() const = 0;

  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  /// Whether bos_id() stands before a text that transformers' tokenizer of the same directory encodes.
  /// encode() adds none either way.
  /// - With a tokenizer.json its post_processor decides: yes where the first token that it puts before a text
  ///   is bos_id(). add_bos_token and tokenizer_class of tokenizer_config.json count nothing then. That is
  ///   transformers 5 for every tokenizer_class, and 4.57 for all but LlamaTokenizer and LlamaTokenizerFast,
  ///   for which 4.57 follows add_bos_token (true by default) instead.
  /// - Without one add_bos_token decides; true where it is not said, as in 4.57 and in Meta's own code
  ///   (transformers 5 documents that, and adds none).
  /// - False without a BOS.
  /// add_eos_token is not followed: what is trained ends with EOS anyway (templates, encode_document()), and
  /// a prompt that did would be a finished text.
  virtual bool adds_bos() const = 0;
  /// Id of a special token by its text, e.g. "<|eot_id|>".
  virtual std::optional<int32_t> special_id(std::string_view text) const = 0;
  /// The bytes of one token as decode() would join them; used by the streaming printer and --dry-run.
  virtual std::string token_text(int32_t id) const = 0;

  /// "sentencepiece" | "bpe"
  virtual std::string_view kind() const = 0;
  /// Changes whenever an id of any text could change; part of the token cache's key (BOS and EOS, which are
  /// settings beside the text, are further parts of it).
  virtual std::string fingerprint() const = 0;
};

/// Finds the tokenizer of a Hugging Face directory: tokenizer.json (byte-level BPE), or tokenizer.model
/// (SentencePiece protobuf or tiktoken rank file, told apart by content); a directory with both a
/// SentencePiece tokenizer.model and a tokenizer.json uses tokenizer.model. bos/eos come from
/// tokenizer_config.json, special_tokens_map.json, or the model itself. Throws BadInput.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

struct SentencePieceTraining {
  int32_t vocab_size = 512;
  bool byte_fallback = true;
  bool split_digits = true;
  double character_coverage = 1.0;
};

/// Trains a SentencePiece BPE model on `texts` (ids: unk 0, bos 1, eos 2) and writes tokenizer.model and
/// tokenizer_config.json into `directory`. The same texts give the same model. Throws BadInput when the
/// texts cannot fill the vocabulary.
void train_sentencepiece(const std::vector<std::string>& texts, const SentencePieceTraining& options,
                         const std::filesystem::path& directory);

}  // namespace satune
