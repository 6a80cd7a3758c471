// The text of an answer while its tokens come, up to the first stop string, of which nothing is written.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/text_stream.h"

namespace satune {

class AnswerText {
 public:
  /// `context` and `write` as TextStream's. What may yet become a stop string is held back. No stop string is
  /// empty.
  AnswerText(const Tokenizer& tokenizer, std::vector<int32_t> context, std::vector<std::string> stops,
             std::function<void(std::string_view)> write);
  AnswerText(const AnswerText&) = delete;
  AnswerText& operator=(const AnswerText&) = delete;

  /// Whether to go on: false once a stop string is there.
  bool append(int32_t token);
  /// Writes what was held back.
  void finish();

  /// Everything written so far.
  const std::string& text() const { return text_; }
  /// The stop string that ended the text.
  const std::optional<std::string>& stop() const { return stop_; }

 private:
  void take(std::string_view piece);
  void release(size_t bytes);

  std::vector<std::string> stops_;
  std::function<void(std::string_view)> write_;
  std::string held_, text_;
  std::optional<std::string> stop_;
  TextStream stream_;
};

}  // namespace satune
