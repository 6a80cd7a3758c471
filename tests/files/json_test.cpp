#include "data/files/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "data/files/error.h"

namespace satune {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string error_of(std::string_view text, JsonOptions options = {}) {
  try {
    parse_json(text, "c.json", options);
  } catch (const BadInput& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    return error.what();
  }
  return "accepted";
}

constexpr JsonOptions kComments{.allow_comments = true};

TEST(Json, KeepsTheOrderOfKeys) {
  const Json json = parse_json(R"({"b":1,"a":[2,{"z":null,"y":true}],"c":-1.5e3})", "c.json");
  EXPECT_EQ(json.dump(), R"({"b":1,"a":[2,{"z":null,"y":true}],"c":-1500.0})");
}

TEST(Json, ReadsNumbersExactly) {
  const Json json = parse_json("[1e-05, 18446744073709551615, -9223372036854775808, 0.1]", "c.json");
  EXPECT_EQ(json[0].get<double>(), 1e-05);
  EXPECT_EQ(json[1].get<uint64_t>(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(json[2].get<int64_t>(), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(json[3].get<double>(), 0.1);
  EXPECT_EQ(parse_json(write_json(json), "c.json"), json);
}

TEST(Json, RefusesARepeatedKeyAndSaysWhere) {
  EXPECT_EQ(error_of("{\n  \"a\": 1,\n  \"a\": 2\n}"),
            "c.json:3:3: found the key \"a\" twice in one object, expected it once");
  // The same name in another object, or as a value, is no repetition.
  EXPECT_EQ(error_of(R"({"a":{"a":1},"b":{"a":"b"}})"), "accepted");
  EXPECT_THAT(error_of(R"({"x":{"k\"ey":"a:b","q":"k","k\"ey":0}})"),
              StartsWith("c.json:1:29: found the key"));
  // Spelled differently, the same key.
  EXPECT_THAT(error_of(R"({"a":1,"\u0061":2})"), StartsWith("c.json:1:8: found the key \"a\" twice"));
}

TEST(Json, CountsFromTheLineThatTheTextIs) {
  EXPECT_THAT(error_of("[1 2]", {.line = 7}), StartsWith("c.json:7:4: "));
  EXPECT_THAT(error_of("", {.line = 7}), StartsWith("c.json:7: found nothing"));
}

TEST(Json, RefusesARepeatedKeyAmongMany) {
  std::string text = "{";
  for (int i = 0; i < 1000; ++i) text += "\"key" + std::to_string(i) + "\":0,";
  EXPECT_EQ(error_of(text + "\"last\":0}"), "accepted");
  EXPECT_THAT(error_of(text + "\"key17\":0}"), HasSubstr("found the key \"key17\" twice"));
  EXPECT_THAT(error_of(text + "\"key999\":0}"), HasSubstr("found the key \"key999\" twice"));
}

TEST(Json, SyntaxErrorsNameLineAndColumn) {
  EXPECT_THAT(error_of("{\n \"a\": tru\n}"), StartsWith("c.json:2:"));
  EXPECT_THAT(error_of("{\"a\":1,}"), StartsWith("c.json:1:8: "));
  EXPECT_THAT(error_of("{} x"), StartsWith("c.json:1:4: "));
  EXPECT_THAT(error_of("{}{}"), StartsWith("c.json:1:3: "));
  // Columns count characters, not bytes.
  EXPECT_THAT(error_of("{\"\xC3\xA4\xC3\xA4\":x}"), StartsWith("c.json:1:7: "));
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* text :
       {"",      " ",       "{",           "[1",       "\"a",   "nul",      "01",           "+1",
        ".5",    "1.",      "NaN",         "Infinity", "'a'",   "{a:1}",    "{\"a\"}",      "[1,]",
        "[1 2]", "\"\\x\"", "\"\\ud800\"", "\"a\tb\"", "1e999", "\"\xFF\"", "\"\xC0\x80\"", "\xFF"}) {
    EXPECT_THAT(error_of(text), StartsWith("c.json")) << text;
  }
  EXPECT_THAT(error_of(std::string_view("{}\0rubbish", 10)), StartsWith("c.json:1:3: found a NUL byte"));
}

TEST(Json, NestingIsBounded) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(error_of(nested(256)), "accepted");
  EXPECT_THAT(error_of(nested(257)), HasSubstr("nested deeper than 256"));
  EXPECT_THAT(error_of(std::string(1'000'000, '[')), HasSubstr("nested deeper than 256"));
}

TEST(Json, CommentsOnlyWhereAllowed) {
  const char* text = "// head\n{\"url\": \"http://x/*y\", // why\n \"b\\\"//\": 2 } // end";
  EXPECT_EQ(parse_json(text, "c.json", kComments).dump(), R"({"url":"http://x/*y","b\"//":2})");
  EXPECT_THAT(error_of(text), StartsWith("c.json:1:1: "));
  EXPECT_THAT(error_of("{} /* no */", kComments), StartsWith("c.json:1:4: "));
  EXPECT_THAT(error_of("// only a comment", kComments), StartsWith("c.json:1:"));
  // Positions stay those of the file.
  EXPECT_THAT(error_of("{ // one\n // two\n \"a\": ! }", kComments), StartsWith("c.json:3:7: "));
}

TEST(Json, LongRubbishGivesAShortMessage) {
  EXPECT_LT(error_of("\"" + std::string(100'000, 'a')).size(), 400u);
}

TEST(Json, ReadFileNamesTheFile) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "json_test.json";
  const auto error = [&] {
    try {
      read_json_file(path);
    } catch (const BadInput& bad) {
      return std::string(bad.what());
    }
    return std::string("accepted");
  };
  std::filesystem::remove(path);
  EXPECT_EQ(error(), path.string() + ": found no such file, expected a readable file");
  std::ofstream(path) << "";
  EXPECT_EQ(error(), path.string() + ": found an empty file, expected a JSON document");
  std::ofstream(path) << "\n\n  {\"a\" 1}";
  EXPECT_THAT(error(), StartsWith(path.string() + ":3:8: "));
  std::ofstream(path) << "{\"a\": 1}";
  EXPECT_EQ(read_json_file(path)["a"], 1);
  std::filesystem::remove(path);
}

TEST(Json, WritesValidJsonWhateverTheNumbers) {
  Json json;
  json["loss"] = std::nan("");
  json["norm"] = std::numeric_limits<double>::infinity();
  json["text"] = "bad \xFF byte";
  const Json back = parse_json(write_json(json), "c.json");
  EXPECT_TRUE(back["loss"].is_null());
  EXPECT_TRUE(back["norm"].is_null());
  EXPECT_EQ(write_json(Json::object()), "{}\n");
}

TEST(Json, DescribesValues) {
  const Json json = parse_json(R"(["abc", [], [1], {}, {"a":1}, 3, 0.5, true, null])", "c.json");
  const char* expected[] = {"the string \"abc\"", "an empty array", "an array",
                            "an empty object",    "an object",      "the number 3",
                            "the number 0.5",     "true",           "null"};
  for (size_t i = 0; i < json.size(); ++i) EXPECT_EQ(describe_json(&json[i]), expected[i]);
  EXPECT_EQ(describe_json(nullptr), "nothing");
  const Json text = std::string(1000, 'x') + "\n";
  EXPECT_LT(describe_json(&text).size(), 100u);
}

TEST(Json, SuggestsTheNearestName) {
  const std::vector<std::string> names = {"learning_rate", "warmup_ratio", "seed", "max_steps"};
  EXPECT_EQ(nearest_name("learnign_rate", names), "learning_rate");
  EXPECT_EQ(nearest_name("Learning-Rate", names), "learning_rate");
  EXPECT_EQ(nearest_name("sed", names), "seed");
  EXPECT_EQ(nearest_name("maxsteps", names), "max_steps");
  EXPECT_EQ(nearest_name("banana", names), "");
  EXPECT_EQ(nearest_name("x", {"y"}), "");
  EXPECT_EQ(nearest_name("", names), "");
}

}  // namespace
}  // namespace satune
