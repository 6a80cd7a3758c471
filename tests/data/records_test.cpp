#include "data/records.h"

#include <gmock/gmock.h>

#include "data/files/error.h"
#include "tests/data/data_fixtures.h"
#include "tests/realdata.h"

namespace satune {
namespace {

using ::testing::HasSubstr;

class RecordsTest : public DataTest {
 protected:
  std::string alpaca_error(std::string_view text, const ColumnNames& columns = {}) const {
    const auto path = write("data.json", text);
    std::string message = message_of<BadInput>([&] { read_alpaca(path, columns); });
    EXPECT_THAT(message, HasSubstr(path.string()));
    EXPECT_EQ(message.find('\n'), std::string::npos) << "one line: " << message;
    return message;
  }
};

TEST_F(RecordsTest, ReadsArraysAndLinesAlike) {
  const auto array = write("a.json", R"( [ {"instruction":"add","input":"1 2","output":"3"},
    {"output":"x \"]\" \\","instruction":"q{[","id":7,"tags":["a",{"b":[]}]}
  ] )");
  const auto lines = write("b.jsonl",
                           "\xEF\xBB\xBF{\"instruction\":\"add\",\"input\":\"1 2\",\"output\":\"3\"}\r\n\n"
                           "{\"output\":\"x \\\"]\\\" \\\\\",\"instruction\":\"q{[\",\"input\":null}");
  for (const auto& path : {array, lines}) {
    const auto records = read_alpaca(path);
    ASSERT_EQ(records.size(), 2u) << path;
    EXPECT_EQ(records[0].instruction, "add");
    EXPECT_EQ(records[0].input, "1 2");
    EXPECT_EQ(records[0].output, "3");
    EXPECT_TRUE(records[0].has_input());
    EXPECT_EQ(records[0].number, 1u);
    EXPECT_EQ(records[1].instruction, "q{[");
    EXPECT_EQ(records[1].output, "x \"]\" \\");
    EXPECT_FALSE(records[1].has_input());
    EXPECT_EQ(records[1].number, 2u);
  }
}

TEST_F(RecordsTest, MissingNullAndEmptyInputAreNoInput) {
  const auto path = write("a.jsonl", R"({"instruction":"a","output":"b"}
{"instruction":"a","output":"b","input":null}
{"instruction":"a","output":"b","input":""}
{"instruction":"a","output":"b","input":" "}
)");
  const auto records = read_alpaca(path);
  ASSERT_EQ(records.size(), 4u);
  EXPECT_FALSE(records[0].has_input());
  EXPECT_FALSE(records[1].has_input());
  EXPECT_FALSE(records[2].has_input());
  EXPECT_TRUE(records[3].has_input());
}

TEST_F(RecordsTest, ColumnsMapOtherNames) {
  const auto path = write("a.json", R"([{"question":"q","context":"c","answer":"a","output":5}])");
  const auto records = read_alpaca(path, {.instruction = "question", .input = "context", .output = "answer"});
  ASSERT_EQ(records.size(), 1u);
  EXPECT_EQ(records[0].instruction, "q");
  EXPECT_EQ(records[0].input, "c");
  EXPECT_EQ(records[0].output, "a");
  const std::string message = message_of<BadInput>([&] { read_alpaca(path); });
  EXPECT_THAT(message, HasSubstr("record 1"));
  EXPECT_THAT(message, HasSubstr("no key \"instruction\""));
  EXPECT_THAT(message, HasSubstr("\"question\", \"context\", \"answer\""));
  EXPECT_THAT(message, HasSubstr("columns"));
}

TEST_F(RecordsTest, ErrorsNameRecordAndKey) {
  const std::string good = R"({"instruction":"a","output":"b"},)";
  EXPECT_THAT(alpaca_error("[" + good + "\n" + R"({"instruction":"a"}])"),
              AllOf(HasSubstr("record 2"), HasSubstr("line 2"), HasSubstr("no key \"output\"")));
  EXPECT_THAT(alpaca_error("[" + good + R"({"instruction":"a","output":12}])"),
              AllOf(HasSubstr("record 2"), HasSubstr("\"output\""), HasSubstr("12"), HasSubstr("a string")));
  EXPECT_THAT(alpaca_error(R"([{"instruction":"a","output":null}])"),
              AllOf(HasSubstr("record 1"), HasSubstr("null")));
  EXPECT_THAT(alpaca_error(R"([{"instruction":"a","output":"b","input":["c"]}])"),
              AllOf(HasSubstr("record 1"), HasSubstr("\"input\""), HasSubstr("array")));
  EXPECT_THAT(alpaca_error("[" + good + "\"text\"]"), AllOf(HasSubstr("record 2"), HasSubstr("an object")));
  EXPECT_THAT(alpaca_error("[" + good + "7]"), AllOf(HasSubstr("record 2"), HasSubstr("an object")));
  EXPECT_THAT(alpaca_error("[" + good + "{}]"), AllOf(HasSubstr("record 2"), HasSubstr("none")));
  EXPECT_THAT(alpaca_error(R"([{"instruction":"a","output":"b","output":"c"}])"),
              AllOf(HasSubstr("record 1"), HasSubstr("output"), HasSubstr("twice")));
}

TEST_F(RecordsTest, SyntaxErrorsNameThePlaceInTheFile) {
  const std::string array =
      alpaca_error("[\n  {\"instruction\":\"a\",\"output\":\"b\"},\n  {\"instruction\":\n   oops}\n]");
  EXPECT_THAT(array, HasSubstr("data.json:4:"));
  EXPECT_THAT(array, HasSubstr("record 2"));
  const std::string same_line =
      alpaca_error(R"([ {"instruction" "a"}])");  // the string that should be ':' ends there
  EXPECT_THAT(same_line, HasSubstr("data.json:1:20"));
  const std::string lines =
      alpaca_error("{\"instruction\":\"a\",\"output\":\"b\"}\n\n{\"instruction\":\"a\",}\n");
  EXPECT_THAT(lines, HasSubstr("data.json:3:"));
  EXPECT_THAT(lines, HasSubstr("record 2"));
}

TEST_F(RecordsTest, JsonlNamesTheLine) {
  EXPECT_THAT(alpaca_error("{\"instruction\":\"a\",\"output\":\"b\"}\n\n\n{\"instruction\":\"a\"}\n"),
              HasSubstr("line 4"));
  // A pretty-printed object and a wrapper object are common mistakes.
  EXPECT_THAT(alpaca_error("{\n \"data\": []\n}"), HasSubstr("one object per line"));
  EXPECT_THAT(alpaca_error("{\"instruction\":\"a\",\"output\":\"b\"}\n[]\n"),
              AllOf(HasSubstr("line 2"), HasSubstr("an object")));
}

TEST_F(RecordsTest, EmptyFilesAndArraysAreErrors) {
  EXPECT_THAT(alpaca_error(""), HasSubstr("empty file"));
  EXPECT_THAT(alpaca_error(" \n\t"), HasSubstr("empty file"));
  EXPECT_THAT(alpaca_error("[ \n ]"), HasSubstr("empty array"));
  EXPECT_THAT(alpaca_error("instruction,output\n"), HasSubstr("0x69"));
  message_of<BadInput>([&] { read_alpaca(folder_ / "nowhere.json"); });
  message_of<BadInput>([&] { read_alpaca(folder_); });
}

TEST_F(RecordsTest, ALineEndWithinAStringIsNamedAndNotTakenForACutOffArray) {
  const std::string message =
      alpaca_error("[{\"instruction\":\"a\",\"output\":\"one\ntwo\"},\n {\"instruction\":\"c\"}]");
  EXPECT_THAT(message, HasSubstr("record 1"));
  EXPECT_THAT(message, HasSubstr("control character"));
  EXPECT_THAT(message, testing::Not(HasSubstr("cut off")));
}

TEST_F(RecordsTest, ArraysCutOffAnywhereAreErrors) {
  const std::string whole = R"([{"instruction":"a\"","output":"b"}, {"instruction":"c","output":"d"} ])";
  EXPECT_EQ(read_alpaca(write("whole.json", whole)).size(), 2u);
  for (size_t size = 1; size < whole.size(); ++size) {
    const std::string message = alpaca_error(whole.substr(0, size));
    EXPECT_THAT(message, HasSubstr("cut off")) << size;
    if (size > whole.find("c\"")) {
      EXPECT_THAT(message, HasSubstr("record 2")) << size;
    }
  }
}

TEST_F(RecordsTest, TextBetweenOrAfterRecordsIsAnError) {
  const std::string record = R"({"instruction":"a","output":"b"})";
  EXPECT_THAT(alpaca_error("[" + record + record + "]"), HasSubstr("after record 1"));
  EXPECT_THAT(alpaca_error("[" + record + ",]"), HasSubstr("after a comma"));
  EXPECT_THAT(alpaca_error("[," + record + "]"), HasSubstr("record 1"));
  EXPECT_THAT(alpaca_error("[" + record + "] x"), HasSubstr("after the array"));
  EXPECT_THAT(alpaca_error("[" + record + "][" + record + "]"), HasSubstr("after the array"));
}

TEST_F(RecordsTest, InvalidUtf8IsAnError) {
  EXPECT_THAT(
      alpaca_error(
          "[{\"instruction\":\"a\",\"output\":\"b\"},{\"instruction\":\"\xC0\xAF\",\"output\":\"b\"}]"),
      AllOf(HasSubstr("record 2"), HasSubstr("UTF-8")));
  EXPECT_THAT(alpaca_error("[{\"instruction\":\"\\ud800\",\"output\":\"b\"}]"), HasSubstr("record 1"));
  const auto path = write("a.txt", "fine\nna\xEFve");
  const std::string message = message_of<BadInput>([&] { read_plain_text(path); });
  EXPECT_THAT(message, AllOf(HasSubstr("a.txt line 2"), HasSubstr("0xef"), HasSubstr("UTF-8")));
}

TEST_F(RecordsTest, PlainTextFilesAndLines) {
  const auto text = read_plain_text(write("a.txt", "one\n\ntwo\n"));
  ASSERT_EQ(text.size(), 1u);
  EXPECT_EQ(text[0].text, "one\n\ntwo\n");
  const auto lines = read_plain_text(write("a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"two\",\"meta\":1}\n"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1].text, "two");
  EXPECT_EQ(lines[1].number, 2u);
  EXPECT_EQ(read_plain_text(write("b.jsonl", "{\"body\":\"x\"}\n"), {.text = "body"})[0].text, "x");
  EXPECT_THAT(message_of<BadInput>([&] { read_plain_text(write("c.txt", "")); }), HasSubstr("empty file"));
  const auto raw = write("wiki.test.raw", " \n = Title = \n");
  EXPECT_THAT(message_of<BadInput>([&] { read_plain_text(raw); }),
              AllOf(HasSubstr("wiki.test.raw"), HasSubstr("0x3d"), HasSubstr("in .txt for plain text")));
}

TEST_F(RecordsTest, TheFormatIsToldByContent) {
  EXPECT_EQ(detect_data_format(write("a.txt", "x")), DataFormat::kText);
  EXPECT_EQ(detect_data_format(write("a.jsonl", "{\"text\":\"x\"}")), DataFormat::kText);
  EXPECT_EQ(detect_data_format(write("b.json", R"([{"text":"x","instruction":"a","output":"b"}])")),
            DataFormat::kAlpaca);
  EXPECT_EQ(detect_data_format(write("c.json", R"([{"text":"x","output":"b"}])")), DataFormat::kAlpaca);
  EXPECT_EQ(detect_data_format(write("d.json", R"([{"prompt":"x"}])")), DataFormat::kAlpaca);
}

TEST_F(RecordsTest, PromptsAreInstructionsOrPlainText) {
  const auto array = write("p.json", R"([{"instruction":"add","input":"1 2"},{"prompt":"Once "},
    {"instruction":"q","output":"not read","input":null}])");
  const auto lines = write("p.jsonl",
                           "{\"instruction\":\"add\",\"input\":\"1 2\"}\n{\"prompt\":\"Once \"}\n\n"
                           "{\"instruction\":\"q\"}\n");
  const auto other = write("prompts", R"({"instruction":"add","input":"1 2"})"
                                      "\n{\"prompt\":\"Once \"}\n{\"instruction\":\"q\"}");
  for (const auto& path : {array, lines, other}) {
    const auto prompts = read_prompts(path);
    ASSERT_EQ(prompts.size(), 3u) << path;
    EXPECT_EQ(prompts[0].record.input, "1 2");
    EXPECT_FALSE(prompts[0].text);
    EXPECT_EQ(prompts[1].text, "Once ");
    EXPECT_EQ(prompts[1].record.number, 2u);
    EXPECT_EQ(prompts[2].record.instruction, "q");
    EXPECT_EQ(prompts[2].record.output, "");
  }
}

TEST_F(RecordsTest, PromptsOfATextFileAreItsLines) {
  const auto prompts = read_prompts(write("p.txt", "{one}\r\n\n  \n two \xC3\xA9\nthree"));
  ASSERT_EQ(prompts.size(), 3u);
  EXPECT_EQ(prompts[0].text, "{one}");
  EXPECT_EQ(prompts[1].text, " two \xC3\xA9");
  EXPECT_EQ(prompts[1].record.number, 4u);
  EXPECT_EQ(prompts[2].text, "three");
  EXPECT_EQ(read_prompts(write("list", "one\ntwo\n")).size(), 2u);
}

TEST_F(RecordsTest, PromptFilesThatCannotBeUsed) {
  const auto error = [&](const char* name, std::string_view text) {
    const auto path = write(name, text);
    return message_of<BadInput>([&] { read_prompts(path); });
  };
  EXPECT_THAT(error("e.txt", ""), HasSubstr("empty file"));
  EXPECT_THAT(error("b.txt", "\n \n"), HasSubstr("blank lines only"));
  EXPECT_THAT(error("u.txt", "one\n\xFF"), HasSubstr("line 2"));
  EXPECT_THAT(error("e.jsonl", ""), HasSubstr("empty file"));
  EXPECT_THAT(error("e.json", "[]"), HasSubstr("empty array"));
  EXPECT_THAT(error("n.jsonl", "{\"text\":\"a\"}"), HasSubstr("line 1: found neither"));
  EXPECT_THAT(error("t.jsonl", "{\"prompt\":\"a\",\"instruction\":\"b\"}"), HasSubstr("both"));
  EXPECT_THAT(error("k.jsonl", "{\"prompt\":3}"), HasSubstr("a string"));
  EXPECT_THAT(error("x.jsonl", "plain"), HasSubstr("expected a JSON array"));
}

TEST(RealRecords, AlpacaFilesAreRead) {
  const std::vector<std::pair<std::string, size_t>> files = {{"alpaca_random9k/random_9k.json", 9229},
                                                             {"alpaca_tiny_torchtune/alpaca_tiny.json", 100}};
  for (const auto& [name, count] : files) {
    SATUNE_REALDATA_OR_SKIP(path, name);
    EXPECT_EQ(detect_data_format(path), DataFormat::kAlpaca);
    const auto records = read_alpaca(path);
    EXPECT_EQ(records.size(), count) << name;
    EXPECT_EQ(records.back().number, count);
  }
}

}  // namespace
}  // namespace satune
