#include "trainer/trained_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/files/error.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(TrainedText, StateJsonHoldsTheStringsAndTheFormat) {
  const PromptTemplate mine("gone.json", {.prompt_with_input = "{instruction}{input}",
                                          .prompt_without_input = "{instruction}",
                                          .response_header = "R:",
                                          .response_suffix = "",
                                          .end_token = "",
                                          .special_tokens = {},
                                          .trim = false});
  Settings settings;
  settings.prompt_template = "gone.json";
  settings.train_file = "gone-too.txt";
  Json state = Json::object();
  add_trained_text(state, {DataFormat::kText, mine});
  EXPECT_EQ(state.at("data_format"), "text");
  const TrainedText read = parse_trained_text(state, settings, "state.json");
  EXPECT_EQ(read.format, DataFormat::kText);
  EXPECT_EQ(read.prompt_template.strings(), mine.strings());
  EXPECT_EQ(read.prompt_template.name(), "gone.json");
  add_trained_text(state, {DataFormat::kAlpaca, mine});
  EXPECT_EQ(parse_trained_text(state, settings, "state.json").format, DataFormat::kAlpaca);
}

TEST(TrainedText, OlderSnapshotsAreReadByNameAndByTheirData) {
  const TemporaryDirectory directory;
  Settings settings;
  settings.train_file = directory.write("book.txt", "text").string();
  const TrainedText read = parse_trained_text(Json::object(), settings, "state.json");
  EXPECT_EQ(read.format, DataFormat::kText);
  EXPECT_EQ(read.prompt_template.strings(), PromptTemplate::load("alpaca").strings());
  settings.prompt_template = "gone.json";
  const auto error = [&](const Json& state) -> std::string {
    try {
      parse_trained_text(state, settings, "state.json");
    } catch (const BadInput& bad) {
      return bad.what();
    }
    return "no error";
  };
  EXPECT_THAT(error(Json::object()),
              AllOf(HasSubstr("state.json: settings: template"), HasSubstr("gone.json")));
  EXPECT_THAT(error({{"data_format", "csv"}}), HasSubstr("state.json: data_format: found the string"));
  EXPECT_THAT(error({{"template", 3}}), HasSubstr("state.json: template: found"));
}

}  // namespace
}  // namespace satune
