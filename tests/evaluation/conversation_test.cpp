#include "evaluation/conversation.h"

#include <gtest/gtest.h>

#include "tests/evaluation/fixtures.h"

namespace satune {
namespace {

const TemplateStrings kPlain = {.prompt_with_input = "Q{instruction}{input}",
                                .prompt_without_input = "Q{instruction}",
                                .response_header = "A",
                                .response_suffix = "",
                                .end_token = "",
                                .special_tokens = {},
                                .trim = false};

std::vector<int32_t> ids(std::string_view text) {
  return ByteTokenizer().encode(text);
}

std::vector<int32_t> joined(std::vector<std::vector<int32_t>> parts) {
  std::vector<int32_t> all;
  for (const std::vector<int32_t>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(Conversation, TurnsFollowOneAnotherWithOneBos) {
  const ByteTokenizer tokenizer;
  const PromptTemplate prompt_template("test", kPlain);
  Conversation conversation(prompt_template, tokenizer);
  conversation.ask("one");
  EXPECT_EQ(conversation.tokens(), joined({{1}, ids("QoneA")}));
  conversation.answer(ids("1"), "1", true);
  conversation.ask("two");
  EXPECT_EQ(conversation.tokens(), joined({{1}, ids("QoneA1"), {2}, ids("QtwoA")}));
  // The tokens that the model wrote stay, also where its text would be encoded in another way.
  conversation.answer(std::vector<int32_t>{0, 3 + '2'}, "2", true);
  conversation.ask("three");
  EXPECT_EQ(conversation.tokens(),
            joined({{1}, ids("QoneA1"), {2}, ids("QtwoA"), {0}, ids("2"), {2}, ids("QthreeA")}));
  EXPECT_EQ(conversation.least_tokens(), joined({{1}, ids("QthreeA")}).size());
  conversation.withdraw();
  conversation.forget_oldest();
  EXPECT_EQ(conversation.turns(), 1u);
  EXPECT_EQ(conversation.tokens(), joined({{1}, ids("QtwoA"), {0}, ids("2"), {2}}));
  conversation.clear();
  EXPECT_EQ(conversation.tokens(), std::vector<int32_t>{1});
}

TEST(Conversation, IsWhatTrainingEncodes) {
  const ByteTokenizer tokenizer;
  TemplateStrings strings = kPlain;
  strings.response_suffix = "\n";
  const PromptTemplate prompt_template("test", strings);
  Conversation conversation(prompt_template, tokenizer);
  conversation.ask("one");
  conversation.answer(ids("1"), "1", true);
  EXPECT_EQ(conversation.tokens(), prompt_template.encode({"one", "", "1", 0}, tokenizer).tokens);
}

TEST(Conversation, ACutAnswerIsItsText) {
  const ByteTokenizer tokenizer;
  const PromptTemplate prompt_template("test", kPlain);
  Conversation conversation(prompt_template, tokenizer);
  conversation.ask("one");
  conversation.answer(ids("1\nQ"), "1", false);
  EXPECT_EQ(conversation.tokens(), joined({{1}, ids("QoneA1"), {2}}));
}

TEST(Conversation, ABosThatTheTemplateSaysIsInEachTurn) {
  const ByteTokenizer tokenizer;
  TemplateStrings strings = kPlain;
  strings.prompt_without_input = "<s>Q{instruction}";
  strings.special_tokens = {"<s>"};
  const PromptTemplate prompt_template("test", strings);
  Conversation conversation(prompt_template, tokenizer);
  conversation.ask("one");
  conversation.answer(ids("1"), "1", true);
  conversation.ask("two");
  EXPECT_EQ(conversation.tokens(), joined({{1}, ids("QoneA1"), {2, 1}, ids("QtwoA")}));
  EXPECT_EQ(conversation.least_tokens(), joined({{1}, ids("QtwoA")}).size());
}

}  // namespace
}  // namespace satune
