#include "evaluation/conversation.h"

#include <algorithm>

namespace satune {
namespace {

/// Whether the template's prompt begins with the tokenizer's BOS by itself.
bool says_bos(const TemplateStrings& strings, const Tokenizer& tokenizer) {
  return std::any_of(strings.special_tokens.begin(), strings.special_tokens.end(),
                     [&](const std::string& token) {
                       return strings.prompt_without_input.starts_with(token) && tokenizer.bos_id() &&
                              tokenizer.special_id(token) == tokenizer.bos_id();
                     });
}

}  // namespace

Conversation::Conversation(const PromptTemplate& prompt_template, const Tokenizer& tokenizer)
    : template_(prompt_template),
      tokenizer_(tokenizer),
      template_has_bos_(says_bos(prompt_template.strings(), tokenizer)) {}

void Conversation::ask(std::string_view text) {
  std::vector<int32_t> turn = template_.encode_prompt({std::string(text), "", "", 0}, tokenizer_);
  if (tokenizer_.bos_id() && !template_has_bos_) turn.erase(turn.begin());
  turns_.push_back(std::move(turn));
}

void Conversation::answer(std::span<const int32_t> tokens, std::string_view text, bool whole) {
  std::vector<int32_t>& turn = turns_.back();
  // A suffix belongs to the response's text: only together do they have the tokens of training.
  if (whole && template_.strings().response_suffix.empty()) {
    turn.insert(turn.end(), tokens.begin(), tokens.end());
    turn.push_back(template_.end_id(tokenizer_));
    return;
  }
  const EncodedSample sample = template_.encode({"", "", std::string(text), 0}, tokenizer_);
  turn.insert(turn.end(), sample.tokens.begin() + sample.prompt_length, sample.tokens.end());
}

size_t Conversation::least_tokens() const {
  return turns_.back().size() + (tokenizer_.bos_id() && !template_has_bos_ ? 1 : 0);
}

std::vector<int32_t> Conversation::tokens() const {
  std::vector<int32_t> tokens;
  if (tokenizer_.bos_id() && !template_has_bos_) tokens.push_back(*tokenizer_.bos_id());
  for (const std::vector<int32_t>& turn : turns_) tokens.insert(tokens.end(), turn.begin(), turn.end());
  return tokens;
}

}  // namespace satune
