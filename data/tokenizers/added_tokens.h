// Added tokens that are not special: whole strings that are found in text before it is pre-tokenized.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "data/tokenizers/special_tokens.h"

namespace satune {

class AddedTokenFinder {
 public:
  /// Takes the tokens that are not special; special ones are never found in text.
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens);

  using Part = std::pair<std::string_view, std::optional<int32_t>>;
  /// The text cut at the tokens (the leftmost, and of those the longest, first): plain parts without id, and
  /// tokens with theirs. Thread-safe.
  std::vector<Part> split(std::string_view text) const;

 private:
  const AddedToken* at(std::string_view text) const;

  std::array<std::vector<AddedToken>, 256> by_first_byte_;  // longest first
  bool empty_ = true;
};

}  // namespace satune
