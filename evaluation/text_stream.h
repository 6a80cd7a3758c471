// Prints generated tokens as text while they come: complete UTF-8 characters only, and the same text in the
// end as decoding all tokens at once.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace satune {

class TextStream {
 public:
  /// `context`: tokens the text continues (a plain prompt), so that a word that follows keeps its space;
  /// empty when the text stands by itself (a response). `write` receives each new piece. Special tokens are
  /// left out.
  TextStream(const Tokenizer& tokenizer, std::vector<int32_t> context,
             std::function<void(std::string_view)> write);

  void append(int32_t token);
  /// Writes what was held back (bytes that never became a character appear as U+FFFD).
  void finish();

  /// Everything written so far.
  const std::string& text() const { return text_; }

 private:
  void write_new(bool even_if_incomplete);

  const Tokenizer& tokenizer_;
  std::function<void(std::string_view)> write_;
  std::vector<int32_t> tokens_;
  size_t window_ = 0;   ///< decoding starts here: far enough back for the tokenizer's rules about spaces
  size_t written_ = 0;  ///< tokens before this one have been written
  std::string text_;
};

}  // namespace satune
