// How a record becomes tokens: the prompt and the response are encoded apart, so that no merge crosses the
// seam, and only the template emits special tokens, by id. Text of a record never becomes one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/records.h"
#include "data/tokenizer.h"

namespace satune {

/// A document as trained: tokens[prompt_length..] are targets (a document's first token never is).
struct EncodedSample {
  std::vector<int32_t> tokens;
  int32_t prompt_length = 0;
};

/// The strings a template is made of. `{instruction}` and `{input}` are replaced, once, by the record's text.
/// The prompt is prompt_* followed by response_header; the response is the output, response_suffix and the
/// end token. A template file is a JSON object of these keys; the two prompts are required.
struct TemplateStrings {
  std::string prompt_with_input;     ///< holds {instruction} and {input}
  std::string prompt_without_input;  ///< holds {instruction}
  std::string response_header;       ///< "" = part of the prompts already
  std::string response_suffix;       ///< plain text between the output and the end token
  std::string end_token;             ///< text of the special token that ends a response; "" = tokenizer's EOS
  std::vector<std::string> special_tokens;  ///< texts that are special tokens where the template says them
  bool trim = false;                        ///< strip white space around the record's texts
  bool operator==(const TemplateStrings&) const = default;
};

class PromptTemplate {
 public:
  /// "alpaca", "alpaca_stanford", "llama3" (strings: see prompt_template.cpp), or the path of a JSON file.
  /// llama3 joins instruction and input by a newline, as LLaMA-Factory does. Throws BadInput.
  static PromptTemplate load(std::string_view name_or_path);
  explicit PromptTemplate(std::string name, TemplateStrings strings);

  const std::string& name() const { return name_; }
  const TemplateStrings& strings() const { return strings_; }
  /// Same strings, same fingerprint; the name does not count.
  std::string fingerprint() const;

  /// Throws BadInput when the tokenizer lacks a special token that the template emits, or an EOS.
  void check(const Tokenizer& tokenizer) const;
  /// Id of the token that ends a response: the one that generation stops at.
  int32_t end_id(const Tokenizer& tokenizer) const;

  /// BOS (once, where the tokenizer has one), prompt, response, end token.
  EncodedSample encode(const Record& record, const Tokenizer& tokenizer) const;
  /// The same tokens up to where the response begins. `output` is not read.
  std::vector<int32_t> encode_prompt(const Record& record, const Tokenizer& tokenizer) const;
  /// The text that is the response (without the end token); "" = nothing to learn from.
  std::string response_text(const Record& record) const;
  /// The prompt as text, special tokens by their text, without BOS.
  std::string prompt_text(const Record& record) const;

  /// A Jinja chat template (chat_template.jinja of an export) whose rendering has exactly the ids of
  /// training: a user message is an instruction without input, an assistant message a response with its end
  /// token; add_generation_prompt appends response_header. A system message raises: no training example had
  /// one. With a SentencePiece tokenizer the ids are those of training in a tokenizer that puts the dummy
  /// prefix after special tokens, too ("legacy": true in tokenizer_config.json); without, "<s>" would be
  /// followed by a prompt that was never trained.
  std::string chat_template(const Tokenizer& tokenizer) const;

 private:
  std::string name_;
  TemplateStrings strings_;
};

/// The text as it is, after BOS where the tokenizer adds one (Tokenizer::adds_bos(): what transformers and
/// lm-eval show a model); "" = BOS only, where the tokenizer has one.
std::vector<int32_t> encode_raw_prompt(std::string_view text, const Tokenizer& tokenizer);

/// What is trained of a document: BOS, text, EOS (each where the tokenizer has one, whether it adds one or
/// not); every token is a target.
EncodedSample encode_document(std::string_view text, const Tokenizer& tokenizer);

}  // namespace satune
