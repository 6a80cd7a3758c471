// A chat as tokens: turns of user and model one after another, as an export's chat template renders them.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/prompt_template.h"
#include "data/tokenizer.h"

namespace satune {

class Conversation {
 public:
  /// Both must outlive it.
  Conversation(const PromptTemplate& prompt_template, const Tokenizer& tokenizer);

  /// The user's next turn; answer() has to follow before another.
  void ask(std::string_view text);
  /// The model's: what it generated, without the end token, which is added. `whole`: the tokens are all of
  /// the answer; else `text` is encoded (where a stop string cut it).
  void answer(std::span<const int32_t> tokens, std::string_view text, bool whole);

  /// BOS and all turns: what the model reads.
  std::vector<int32_t> tokens() const;
  /// How many they are when all turns but the last are forgotten; after an ask().
  size_t least_tokens() const;
  /// Takes back the last ask().
  void withdraw() { turns_.pop_back(); }
  size_t turns() const { return turns_.size(); }
  void forget_oldest() { turns_.pop_front(); }
  void clear() { turns_.clear(); }

 private:
  const PromptTemplate& template_;
  const Tokenizer& tokenizer_;
  bool template_has_bos_;
  std::deque<std::vector<int32_t>> turns_;  ///< without BOS, but for one that the template itself says
};

}  // namespace satune
