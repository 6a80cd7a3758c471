// samples.jsonl: answers at evaluations that time or a stop cut, and what a resume does with them.
#include "trainer/eval_samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "evaluation/model_loader.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/snapshot.h"

namespace satune::trainer_test {
namespace fs = std::filesystem;
namespace {

using ::testing::ElementsAre;

std::vector<Json> sample_rows(const fs::path& run_folder) {
  std::istringstream lines(content_of(run_folder / "samples.jsonl"));
  std::vector<Json> rows;
  for (std::string line; std::getline(lines, line);) rows.push_back(Json::parse(line));
  return rows;
}

std::vector<int64_t> sample_steps(const fs::path& run_folder) {
  std::vector<int64_t> steps;
  for (const Json& row : sample_rows(run_folder)) steps.push_back(row.at("step").get<int64_t>());
  return steps;
}

TEST(Resume, CutsSamplesAfterTheSnapshotWhateverTheSettingIsNow) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train("run", {"save_steps=4", "eval_steps=2", "eval_samples=2"}), kExitOk);
  EXPECT_THAT(sample_steps(tiny.output("run")), ElementsAre(2, 2, 4, 4, 6, 6, 8, 8, 10, 10));
  fs::remove_all(tiny.output("run") / "snapshots" / snapshot_name(10));
  ASSERT_EQ(tiny.train("run", {"save_steps=4", "eval_steps=2"}), kExitOk);
  EXPECT_EQ(metric_rows(tiny.output("run")).size(), 10U);
  EXPECT_THAT(sample_steps(tiny.output("run")), ElementsAre(2, 2, 4, 4, 6, 6, 8, 8));
}

/// Answers of a model that is not trained.
struct SampledModel {
  TinyRun tiny;
  RunPlan plan{tiny.settings("run", {"eval_samples=3"})};
  Llama model =
      load_model(find_model({.name_or_path = tiny.model().string(), .sharing = "2-3", .precision = "fp32"}));

  EvalSamples samples(const fs::path& folder, int64_t last_step, double most_seconds) {
    return {plan, folder, last_step, most_seconds, posix_file_ops()};
  }
};

constexpr double kAnyTime = std::numeric_limits<double>::infinity();

bool goes_on() {
  return false;
}

// Other ranks wait for the answers, for ddp_timeout at most.
TEST(EvalSamples, EndWhenTheirTimeIsOver) {
  SampledModel sampled;
  const TemporaryDirectory run;
  sampled.samples(run.path(), 0, /*most_seconds=*/0).write(sampled.model, 5, goes_on);
  const std::vector<Json> rows = sample_rows(run.path());
  ASSERT_EQ(rows.size(), 3U);
  for (const Json& row : rows) {
    EXPECT_EQ(row.at("step"), 5);
    EXPECT_EQ(row.at("answer"), "");
    EXPECT_EQ(row.at("cut"), "time");
    EXPECT_NE(row.at("prompt"), "");
  }
}

TEST(EvalSamples, AStopKeepsWhatThereIsAndARunThatGoesOnWritesItAgain) {
  SampledModel sampled;
  const TemporaryDirectory whole, stopped;
  sampled.samples(whole.path(), 0, kAnyTime).write(sampled.model, 5, goes_on);
  const std::vector<Json> expected = sample_rows(whole.path());
  ASSERT_EQ(expected.size(), 3U);
  for (const Json& row : expected) EXPECT_FALSE(row.contains("cut")) << row;
  {
    EvalSamples samples = sampled.samples(stopped.path(), 0, kAnyTime);
    samples.write(sampled.model, 4, goes_on);
    int asked = 0;  // before each answer, and after each token
    samples.write(sampled.model, 5, [&asked] { return ++asked >= 2; });
  }
  std::vector<Json> rows = sample_rows(stopped.path());
  ASSERT_EQ(rows.size(), 6U);
  EXPECT_FALSE(rows[2].contains("cut"));
  EXPECT_EQ(rows[4].at("cut"), "stop");
  EXPECT_EQ(rows[5].at("cut"), "stop");
  EXPECT_EQ(rows[5].at("answer"), "");

  EvalSamples again = sampled.samples(stopped.path(), 5, kAnyTime);
  again.finish(sampled.model, 4, goes_on);
  EXPECT_EQ(sample_rows(stopped.path()), rows) << "no stop cut the rows of that step";
  again.finish(sampled.model, 5, goes_on);
  rows = sample_rows(stopped.path());
  ASSERT_EQ(rows.size(), 6U);
  EXPECT_EQ(std::vector<Json>(rows.begin() + 3, rows.end()), expected);
}

}  // namespace
}  // namespace satune::trainer_test
