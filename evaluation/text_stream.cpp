#include "evaluation/text_stream.h"

#include <span>
#include <utility>

namespace satune {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<int32_t> context,
                       std::function<void(std::string_view)> write)
    : tokenizer_(tokenizer),
      write_(std::move(write)),
      tokens_(std::move(context)),
      written_(tokens_.size()) {}

void TextStream::append(int32_t token) {
  tokens_.push_back(token);
  write_new(false);
}

void TextStream::finish() {
  write_new(true);
}

void TextStream::write_new(bool even_if_incomplete) {
  const std::span<const int32_t> tokens(tokens_);
  const std::string before = tokenizer_.decode(tokens.subspan(window_, written_ - window_), true);
  const std::string all = tokenizer_.decode(tokens.subspan(window_), true);
  const bool incomplete = all.ends_with(kReplacement);
  if (all.size() <= before.size() || (incomplete && !even_if_incomplete)) return;
  const std::string piece = all.substr(before.size());
  text_ += piece;
  write_(piece);
  // The next piece is decoded behind this one, so that the cost of a token does not grow with the text.
  window_ = written_;
  written_ = tokens_.size();
}

}  // namespace satune
