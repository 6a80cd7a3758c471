// Byte-pair encoding of one pre-tokenized word.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/tokenizers/token_table.h"

namespace satune {

/// Which two tokens merge into which, and in what order: a list of merges (tokenizer.json), lowest place
/// first.
class PairTable {
 public:
  struct Merge {
    uint32_t rank = UINT32_MAX;  ///< UINT32_MAX: the pair does not merge
    int32_t id = -1;
  };

  explicit PairTable(size_t expected = 0);
  /// A pair that is already there takes the new rank, as in the tokenizers library.
  void add(int32_t left, int32_t right, Merge merge);
  Merge find(int32_t left, int32_t right) const;
  bool empty() const { return used_ == 0; }

 private:
  struct Slot {
    uint64_t key = UINT64_MAX;
    Merge merge;
  };
  size_t slot_of(uint64_t key) const;

  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  size_t used_ = 0;
};

/// Splits a word into tokens by merging, again and again, the leftmost pair of the lowest rank, beginning
/// with single bytes, or with characters as SentencePiece does.
/// Immutable after construction, so encode() may be called from any thread.
class BytePairEncoder {
 public:
  enum class Words {
    kMerge,      ///< a word that is a token may still come out as several, if no merges lead to it
    kWholeFirst  ///< a word that is a token is that token ("ignore_merges", tiktoken)
  };

  /// Merges listed in `pairs`. `tokens` must hold every single byte and outlive the encoder.
  BytePairEncoder(const TokenTable& tokens, PairTable pairs, Words words);
  /// Any two neighbours merge whose joined bytes are a token, whose id is the rank (tiktoken).
  explicit BytePairEncoder(const TokenTable& tokens);
  /// Begins with characters; any two neighbours merge whose joined bytes are a token, by that token's place
  /// in `ranks`. Characters that are no token at the end become the tokens `bytes` (SentencePiece).
  BytePairEncoder(const TokenTable& tokens, std::vector<uint32_t> ranks,
                  const std::array<int32_t, 256>& bytes);

  /// Appends the ids of one non-empty word, which is well-formed UTF-8 where characters matter.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Part;
  PairTable::Merge find(int32_t left, int32_t right, std::string_view joined) const;
  PairTable::Merge merge_of(std::string_view word, const std::vector<Part>& parts, uint32_t left) const;
  void merge_short(std::string_view word, std::vector<int32_t>& ids) const;
  void merge_long(std::string_view word, std::vector<int32_t>& ids) const;
  void merge(std::string_view word, std::vector<int32_t>& ids) const;
  size_t unit_end(std::string_view word, size_t begin) const;
  int32_t unit_id(std::string_view unit) const;
  void push(int32_t id, std::string_view part, std::vector<int32_t>& ids) const;
  void find_single_bytes();
  void find_whole_words();

  const TokenTable& tokens_;
  PairTable pairs_;
  bool by_joined_bytes_;
  bool by_character_ = false;
  std::vector<uint32_t> ranks_;              // by id; empty: the id itself
  std::array<int32_t, 256> single_ids_{};    // of units of one byte, -1 without a token
  std::array<int32_t, 256> fallback_ids_{};  // by_character_: what becomes of unknown characters' bytes
  std::vector<bool> whole_;                  // by id: a word of these bytes is this one token
};

}  // namespace satune
