// What a step is made of, recorded: nesting, the trace's file, and that nobody's numbers change.
#include "trainer/profile.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <map>

#include "tests/trainer/signal_at_snapshot.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/step_recorder.h"
#include "trainer/trace_file.h"

namespace satune::trainer_test {
namespace {

TEST(StepRecorder, PartsNestAndJourneysDoNot) {
  StepRecorder recorder(at::kCPU);
  const size_t step = recorder.begin("step {}", 7);
  const size_t layer = recorder.begin("layer {} forward", 3);
  recorder.begin("norm");  // left open, as by an exception
  const size_t journey = recorder.depart("reduction of segment {}", 4);
  recorder.end(layer);
  recorder.end(layer);  // twice does nothing
  recorder.end(step);
  recorder.arrive(journey);
  const StepRecorder::Recorded recorded = recorder.take();
  ASSERT_EQ(recorded.parts.size(), 3U);
  EXPECT_EQ(recorded.parts[0].text(), "step 7");
  EXPECT_EQ(recorded.parts[1].text(), "layer 3 forward");
  EXPECT_EQ(recorded.parts[1].kind(), "layer forward");
  EXPECT_EQ(recorded.parts[0].kind(), "step");
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(recorded.parts[i].parent, i - 1);
    EXPECT_EQ(recorded.parts[i].depth, i);
    EXPECT_LE(recorded.parts[i].host.begin, recorded.parts[i].host.end);
    if (i == 0) continue;
    EXPECT_GE(recorded.parts[i].host.begin, recorded.parts[i - 1].host.begin);
    EXPECT_LE(recorded.parts[i].host.end, recorded.parts[i - 1].host.end);
  }
  ASSERT_EQ(recorded.journeys.size(), 1U);
  EXPECT_EQ(recorded.journeys[0].text(), "reduction of segment 4");
  EXPECT_GE(recorded.journeys[0].host.end, recorded.parts[0].host.end);
  // What was begun before take() is over.
  const size_t later = recorder.begin("later");
  recorder.end(step);
  recorder.arrive(journey);
  recorder.end(later);
  EXPECT_EQ(recorder.take().parts.size(), 1U);
}

RecordedPart part_of(const char* name, int64_t parent, int depth, double begin, double end) {
  RecordedPart part;
  part.name = name;
  part.parent = parent;
  part.depth = depth;
  part.host = part.device = {begin, end};
  return part;
}

TEST(TraceFile, TotalsAddUpAndJourneysGetRowsOfTheirOwn) {
  StepRecorder::Recorded recorded;
  recorded.parts = {part_of("step {}", -1, 0, 0, 100), part_of("layer {} forward", 0, 1, 10, 40),
                    part_of("norm", 1, 2, 12, 20),     part_of("layer {} forward", 0, 1, 50, 70),
                    part_of("norm", 3, 2, 55, 60),     part_of("norm", 0, 1, 80, 90)};
  recorded.journeys = {part_of("gather", -1, 0, 0, 30), part_of("gather", -1, 0, 20, 50),
                       part_of("gather", -1, 0, 30, 40)};
  const std::vector<PartTotal> totals = part_totals(recorded);
  ASSERT_EQ(totals.size(), 4U);  // the norms of layers, and the one beside them
  EXPECT_EQ(totals[1].kind, "layer forward");
  EXPECT_EQ(totals[1].calls, 2);
  EXPECT_DOUBLE_EQ(totals[1].microseconds, 50);
  EXPECT_DOUBLE_EQ(totals[1].own, 37);
  EXPECT_DOUBLE_EQ(totals[2].microseconds, 13);
  double own = 0;
  for (const PartTotal& total : totals) own += total.own;
  EXPECT_DOUBLE_EQ(own, 100);

  std::map<int, std::vector<std::pair<double, double>>> rows;
  const Json trace = Json::parse(trace_json(recorded, {1, 2}));
  for (const Json& event : trace.at("traceEvents")) {
    EXPECT_EQ(event.at("pid"), 1);
    if (event.value("cat", "") == "communication")
      rows[event.at("tid")].emplace_back(event.at("ts"), event.at("dur"));
  }
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows.begin()->second, (std::vector<std::pair<double, double>>{{0, 30}, {30, 10}}));
}

/// Of a trace: every row's events nest; the number of events of each kind.
std::map<std::string, int> checked_counts(const std::filesystem::path& file) {
  const Json trace = read_json_file(file);
  std::map<std::string, int> counts;
  std::map<int, std::vector<double>> open;  // ends, by row
  constexpr double kSlack = 1e-3;           // us; a sum of two rounded numbers
  for (const Json& event : trace.at("traceEvents")) {
    if (event.at("ph") == "M") continue;
    EXPECT_EQ(event.at("ph"), "X");
    const double begin = event.at("ts"), length = event.at("dur");
    EXPECT_GE(length, 0);
    std::vector<double>& ends = open[event.at("tid")];
    while (!ends.empty() && ends.back() <= begin + kSlack) ends.pop_back();
    if (!ends.empty()) {
      EXPECT_LE(begin + length, ends.back() + kSlack) << event.dump();
    }
    ends.push_back(begin + length);
    ++counts[event.at("args").at("kind")];
  }
  return counts;
}

ExitCode train_profiled(const TinyRun& tiny, const std::string& name, int64_t steps,
                        const std::vector<std::string>& more = {}, FileOps& ops = posix_file_ops()) {
  TrainOptions options;
  options.profile_steps = steps;
  options.file_ops = &ops;
  return static_cast<ExitCode>(run_training(tiny.settings(name, more), options));
}

// Four layers, 2 and 3 share what 1 computes; two micro-batches a step.
TEST(Profile, CountsAreThoseOfThePolicyAndTheTrajectoryStays) {
  const TinyRun tiny;
  const std::vector<std::string> four = {"max_steps=4", "gradient_checkpointing=false"};
  ASSERT_EQ(tiny.train("plain", four), kExitOk);
  ASSERT_EQ(train_profiled(tiny, "profiled", 2, four), kExitOk);
  EXPECT_EQ(repeatable_rows(tiny.output("profiled")), repeatable_rows(tiny.output("plain")));
  EXPECT_EQ(snapshot_tensors(tiny.output("profiled"), 4), snapshot_tensors(tiny.output("plain"), 4));

  std::map<std::string, int> counts = checked_counts(tiny.output("profiled") / "profile" / "rank0.json");
  EXPECT_EQ(counts["step"], 2);
  EXPECT_EQ(counts["evaluation"], 1);
  EXPECT_EQ(counts["data"], 4);
  EXPECT_EQ(counts["optimizer"], 2);
  EXPECT_EQ(counts["embedding backward"], 4);
  EXPECT_EQ(counts["head backward"], 4);
  EXPECT_EQ(counts["layer backward"], 4 * 4);
  EXPECT_EQ(counts["forward again"], 0);
  const int evaluated = counts["layer forward"] - 4 * 4;  // four layers, a batch of two records
  EXPECT_EQ(evaluated % 4, 0);
  EXPECT_GT(evaluated, 0);
  EXPECT_EQ(counts["swiglu"], 2 * 4 * 4 + evaluated);
  EXPECT_EQ(counts["attention"], 2 * 4 * 4 + evaluated);
  // The anchor and layer 0 rotate, and the anchor and its two sharers add to the sums of the span.
  EXPECT_EQ(counts["rope"], 2 * 4 * 2 + evaluated / 2);
  EXPECT_EQ(counts["sum over span"], 4 * 3);

  for (const auto& [policy, again] : std::map<std::string, std::map<std::string, int>>{
           {"true", {{"attention", 16}, {"swiglu", 16}, {"rope", 8}, {"down projection", 0}}},
           {"selective", {{"attention", 0}, {"swiglu", 16}, {"rope", 0}, {"down projection", 0}}}}) {
    ASSERT_EQ(train_profiled(tiny, "with " + policy, 2, {"max_steps=4", "gradient_checkpointing=" + policy}),
              kExitOk);
    EXPECT_EQ(snapshot_tensors(tiny.output("with " + policy), 4), snapshot_tensors(tiny.output("plain"), 4));
    std::map<std::string, int> here = checked_counts(tiny.output("with " + policy) / "profile/rank0.json");
    EXPECT_EQ(here["forward again"], 16);
    for (const auto& [part, more] : again)
      EXPECT_EQ(here[part], counts[part] + more) << policy << " " << part;
  }
}

TEST(Profile, OfARunThatStopsEarlierIsWhole) {
  const TinyRun tiny;
  SignalAtSnapshot stop(4, SIGTERM);
  ASSERT_EQ(train_profiled(tiny, "run", 50, {"max_steps=60", "save_steps=4"}, stop), kExitResumable);
  std::map<std::string, int> counts = checked_counts(tiny.output("run") / "profile" / "rank0.json");
  EXPECT_EQ(counts["step"], 2);  // the third and the fourth
  EXPECT_EQ(counts["snapshot"], 1);
  EXPECT_FALSE(std::filesystem::exists(tiny.output("run") / "profile" / "rank1.json"));
}

// A trace that cannot be written costs no run.
TEST(Profile, ThatCannotBeWrittenIsAWarning) {
  const TinyRun tiny;
  std::filesystem::create_directories(tiny.output("run"));
  tiny.directory().write("run/.lock", "");
  tiny.directory().write("run/profile", "a file");
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(train_profiled(tiny, "run", 1, {"max_steps=3"}), kExitOk);
  EXPECT_THAT(
      ::testing::internal::GetCapturedStdout(),
      ::testing::HasSubstr("profile: " + (tiny.output("run") / "profile").string() + ": cannot be made: "));
  EXPECT_EQ(metric_rows(tiny.output("run")).size(), 3U);
}

TEST(ProfileOnCard, HasTimesOfTheCard) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  const at::Device card(at::kCUDA, 0);
  StepRecorder recorder(card);
  const at::Tensor a = at::ones({2048, 2048}, at::TensorOptions(card));
  for (int i = 0; i < 3; ++i) {
    const TracedPart step(&recorder, "step {}", i);
    const TracedPart part(&recorder, "product");
    at::matmul(a, a);
  }
  const StepRecorder::Recorded recorded = recorder.take();
  ASSERT_TRUE(recorded.on_card);
  double last = 0;
  for (const RecordedPart& part : recorded.parts) {
    EXPECT_GT(part.device.length(), 0);
    if (part.depth > 0) continue;
    EXPECT_GE(part.device.begin, last);
    last = part.device.end;
  }
}

}  // namespace
}  // namespace satune::trainer_test
