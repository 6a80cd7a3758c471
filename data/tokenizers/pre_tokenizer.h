// Cutting text into the words that byte-pair encoding never crosses.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace satune {

/// Words as views into the text or into `owned`, where a step had to put a space before a word.
struct Words {
  std::vector<std::string_view> views;
  std::deque<std::string> owned;
};

/// One step of a pre-tokenizer: cuts every word into smaller ones. Immutable and thread-safe.
class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  virtual void split(std::string_view word, Words& out) const = 0;
};

/// The steps of a pre-tokenizer, applied in order to well-formed UTF-8.
class PreTokenizer {
 public:
  /// Llama-3's: kLlama3Pattern, then bytes as they are.
  static PreTokenizer llama3();

  /// The "pre_tokenizer" value of a tokenizer.json: ByteLevel, or a Sequence of Split, Digits and ByteLevel
  /// with one ByteLevel. Split knows the behaviours Isolated and Removed. Throws BadInput that begins with
  /// `where` and names anything else.
  PreTokenizer(const nlohmann::json& value, const std::string& where);

  Words split(std::string_view text) const;

 private:
  PreTokenizer() = default;
  void add_step(const nlohmann::json& value, const std::string& where);

  std::vector<std::unique_ptr<const PreTokenizerStep>> steps_;
  bool byte_level_ = false;
};

}  // namespace satune
