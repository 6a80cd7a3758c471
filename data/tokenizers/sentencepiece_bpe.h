// SentencePiece's BPE for models of Llama-2's kind, several times faster than the library.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "data/tokenizers/byte_pair_encoder.h"
#include "data/tokenizers/token_table.h"

namespace satune {

inline constexpr std::string_view kMetaSpace = "\xE2\x96\x81";  ///< U+2581, how pieces write a space

/// Encodes as SentencePieceProcessor::Encode does. The library merges over the whole text with one heap; in
/// the models taken here no piece reaches from another character into a following space, so the words
/// between can be merged apart.
class SentencePieceBpe {
 public:
  /// Null unless the model is BPE with byte fallback over text that is not normalized, with pieces of the
  /// types normal, unknown, control and byte only, and no piece with a space after another character.
  static std::unique_ptr<const SentencePieceBpe> make(std::string_view serialized_model);

  /// Ids of well-formed UTF-8. Thread-safe.
  std::vector<int32_t> encode(std::string_view text) const;

 private:
  SentencePieceBpe() = default;

  TokenTable tokens_;  // normal pieces
  std::unique_ptr<const BytePairEncoder> encoder_;
  bool add_dummy_prefix_ = true;
};

}  // namespace satune
