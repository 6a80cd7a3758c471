#include "trainer/run_plan.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/files/error.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/dry_run.h"
#include "trainer/run_folder.h"
#include "trainer/snapshot.h"

namespace satune::run_plan_test {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using trainer_test::TinyRun;

template <class Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const BadInput& error) {
    return error.what();
  }
  return "no error";
}

class RunPlanTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { run_ = new TinyRun(40); }
  static void TearDownTestSuite() {
    delete run_;
    run_ = nullptr;
  }
  // 40 records, unpacked and without a split: 40 rows an epoch, 3 rows a step.
  static Settings settings(const std::vector<std::string>& more) {
    const Json config = {{"model_name_or_path", run_->model().string()},
                         {"train_file", run_->data().string()},
                         {"output_dir", run_->output("out").string()},
                         {"token_cache_dir", ""},
                         {"sharing", {{"layers", "2-3"}}},
                         {"max_length", 512},
                         {"packing", false},
                         {"val_size", 0},
                         {"warmup_ratio", 0.1},
                         {"per_device_train_batch_size", 3},
                         {"gradient_accumulation_steps", 1},
                         {"num_threads", 1},
                         {"device", "cpu"}};
    return parse_settings(config.dump(), "test", more);
  }
  static RunPlan plan(const std::vector<std::string>& more, int64_t world_size = 1) {
    return RunPlan(settings(more), world_size);
  }
  static TinyRun* run_;
};
TinyRun* RunPlanTest::run_ = nullptr;

TEST_F(RunPlanTest, EveryRowOfAnEpochOnceAndTheLastStepIsSmaller) {
  RunPlan p = plan({"num_train_epochs=2"});
  ASSERT_EQ(p.train().rows(0), 40);
  EXPECT_EQ(p.rows_per_step(), 3);
  EXPECT_EQ(p.total_steps(), 28);  // 2 x ceil(40 / 3)
  EXPECT_EQ(p.warmup_steps(), 3);
  int64_t row = 0, epoch = 0;
  for (int64_t step = 0; step < p.total_steps(); ++step) {
    const StepPosition at = p.position(step);
    EXPECT_EQ(at.epoch, epoch);
    EXPECT_EQ(at.first_row, row);
    EXPECT_EQ(at.rows, std::min<int64_t>(3, 40 - row));
    row += at.rows;
    if (row == 40) row = 0, ++epoch;
  }
  EXPECT_EQ(epoch, 2);
}

TEST_F(RunPlanTest, PositionsDoNotDependOnTheOrderOfQuestions) {
  RunPlan walked = plan({"num_train_epochs=3"}), sought = plan({"num_train_epochs=3"});
  for (int64_t step = 0; step < 40; ++step) walked.position(step);
  const StepPosition a = walked.position(33), b = sought.position(33);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.first_row, b.first_row);
  EXPECT_EQ(a.rows, b.rows);
}

TEST_F(RunPlanTest, StepsOfARun) {
  EXPECT_EQ(plan({"num_train_epochs=1.5"}).total_steps(), 21);
  EXPECT_EQ(plan({"num_train_epochs=0.1"}).total_steps(), 2);
  EXPECT_EQ(plan({"max_steps=33"}).total_steps(), 33);
  EXPECT_EQ(plan({"num_train_epochs=1"}, 2).total_steps(), 7);  // 6 rows a step
  RunPlan p = plan({"max_steps=33"});
  EXPECT_EQ(p.epochs_after(0), 0.0);
  EXPECT_EQ(p.epochs_after(7), 0.5);
  EXPECT_EQ(p.epochs_after(14), 1.0);
  EXPECT_EQ(p.epochs_after(33), 2.0 + 5.0 / 14.0);
}

TEST_F(RunPlanTest, ShortRunsKeepFewSnapshots) {
  const auto kept = [](const std::vector<std::string>& more) {
    std::vector<std::string> all = {"max_steps=6", "save_total_limit=4"};
    all.insert(all.end(), more.begin(), more.end());
    RunPlan p = plan(all);
    return disk_need(p).snapshots;
  };
  EXPECT_EQ(kept({"save_steps=0"}), 1) << "of a stop, while that of the end is written";
  EXPECT_EQ(kept({"save_steps=6"}), 1) << "the end";
  EXPECT_EQ(kept({"save_steps=3"}), 2);
  EXPECT_EQ(kept({"save_steps=1"}), 4) << "the limit";
  EXPECT_EQ(kept({"save_steps=0", "save_minutes=5"}), 4) << "nobody knows how many";
  EXPECT_EQ(kept({"save_steps=0", "keep_best=true", "val_size=4", "warmup_steps=0"}), 5);
}

TEST_F(RunPlanTest, TheSplitIsHeldOutAndInOrder) {
  RunPlan p = plan({"val_size=4", "max_steps=2", "warmup_steps=0"});
  EXPECT_EQ(p.train().rows(0), 36);
  ASSERT_NE(p.eval(), nullptr);
  EXPECT_FALSE(p.eval()->options().shuffle);
  EXPECT_EQ(p.eval()->dataset().size(), 4);
  EXPECT_EQ(plan({"max_steps=2"}).eval(), nullptr);
}

TEST_F(RunPlanTest, SharingLeavesOutTheTensorsOfADenseSource) {
  const RunPlan shared = plan({"sharing.layers=2-3"}), dense = plan({"sharing.layers="});
  EXPECT_TRUE(shared.dense_source());
  EXPECT_FALSE(dense.dense_source());
  EXPECT_EQ(shared.table().find("model.layers.2.self_attn.q_proj.weight"), nullptr);
  EXPECT_NE(dense.table().find("model.layers.2.self_attn.q_proj.weight"), nullptr);
  EXPECT_EQ(shared.trained_parameters(), shared.table().parameter_count());
  const RunPlan partly = plan({"unfrozen_parameters=model.norm.weight"});
  EXPECT_EQ(partly.trained_parameters(), 32);
}

TEST_F(RunPlanTest, AnExportedPlanIsInheritedAndNotContradicted) {
  ASSERT_EQ(run_->train("exported", {"max_steps=3", "export_at_end=true"}), kExitOk);
  const std::string model = "model_name_or_path=" + (run_->output("exported") / "export").string();
  EXPECT_EQ(plan({model, "sharing.layers="}).config().sharing.layers_text(), "2-3");
  EXPECT_FALSE(plan({model, "sharing.layers=2-3"}).dense_source());
  EXPECT_THAT(error_of([&] {
                plan({model, "sharing.layers=3-3"});
              }),
              AllOf(HasSubstr("sharing.layers"), HasSubstr("\"2-3\""), HasSubstr("config.json")));
}

TEST_F(RunPlanTest, WhatCannotBeTrainedIsRefused) {
  EXPECT_THAT(error_of([] { plan({"max_steps=5", "warmup_steps=5"}); }), HasSubstr("shorter than the run"));
  EXPECT_THAT(error_of([] { plan({"max_length=4", "overlength=error"}); }), HasSubstr("train.json"));
  EXPECT_THAT(error_of([] { plan({"template=missing.json"}); }), HasSubstr("missing.json"));
  const std::filesystem::path long_record = run_->output("long.json");
  std::ofstream(long_record) << R"([{"instruction": "say", "output": ")" + std::string(3000, 'x') + "\"}]";
  EXPECT_THAT(error_of([&] {
                plan({"train_file=" + long_record.string(), "max_length=4096"});
              }),
              HasSubstr("max_position_embeddings"));
}

TEST_F(RunPlanTest, ErrorsNameTheConfigThatSaidIt) {
  const Json base = settings_json(settings({}));
  const auto error = [&](const Json& change, const std::vector<std::string>& overrides = {}) {
    Json config = base;
    config.update(change);
    return error_of([&] { RunPlan(parse_settings(config.dump(), "run.json", overrides)); });
  };
  EXPECT_THAT(error({{"warmup_steps", 99999}, {"warmup_ratio", nullptr}}),
              StartsWith("run.json: warmup_steps: "));
  EXPECT_THAT(error({{"template", "vicuna"}}), StartsWith("run.json: template: "));
  EXPECT_THAT(error({{"sharing", {{"layers", "2-9"}, {"anchor", "before"}}}}),
              StartsWith("run.json: sharing.layers \"2-9\": "));
  EXPECT_THAT(error({{"unfrozen_parameters", {"model.layer.1"}}}),
              StartsWith("run.json: unfrozen_parameters: "));
  EXPECT_THAT(error({{"val_size", 40}}), StartsWith("run.json: val_size: "));
  EXPECT_THAT(error(Json::object(), {"template=vicuna"}), StartsWith("command line: template: "));
  EXPECT_THAT(error({{"train_file", "missing.json"}}), StartsWith("missing.json: "));
}

TEST_F(RunPlanTest, ATextFileTrainsWithTheDefaultValSize) {
  const std::filesystem::path book = run_->output("book.txt");
  std::ofstream(book) << "river stone seven cloud green";
  const std::vector<std::string> more = {"train_file=" + book.string(), "val_size=0.01", "max_steps=2"};
  RunPlan p = plan(more);
  EXPECT_EQ(p.eval(), nullptr);
  EXPECT_EQ(p.train().rows(0), 1);
  std::vector<std::string> patient = more;
  patient.push_back("patience=2");
  EXPECT_THAT(error_of([&] { plan(patient); }),
              AllOf(HasSubstr("patience"), HasSubstr("book.txt holds one")));
}

TEST_F(RunPlanTest, DryRunTellsThePlanAndWritesNothing) {
  RunPlan p = plan({"num_train_epochs=2", "output_dir=" + run_->output("never-made").string()});
  const std::string report = dry_run_report(p);
  for (const char* expected :
       {"layers 2-3", "40 samples of 40 records", "one sample each", "28 (2.00 epochs; 14 in the first)",
        "3 steps = 10.7 % of the run", "samples 2.9 (1 to 3)", "free under", "estimated",
        "nothing to take up", "as trained", "-> "}) {
    EXPECT_THAT(report, HasSubstr(expected));
  }
  EXPECT_THAT(report, Not(HasSubstr("WARNING")));
  EXPECT_FALSE(std::filesystem::exists(run_->output("never-made")));
}

TEST_F(RunPlanTest, DryRunPlansMemoryForARankAndItsMachine) {
  const auto report = [](const std::string& stage, int64_t ranks, int64_t local_ranks) {
    RunPlan p = plan({"max_steps=2", "zero_stage=" + stage}, ranks);
    return dry_run_report(p, local_ranks);
  };
  const std::string alone = report("3", 1, 1), cut = report("3", 4, 2), whole = report("0", 4, 2);
  EXPECT_THAT(alone, AllOf(HasSubstr("available on cpu\n"), Not(HasSubstr("zero_stage"))));
  EXPECT_THAT(cut, AllOf(HasSubstr("zero_stage: 3, as configured"), HasSubstr(" a rank estimated (weights "),
                         HasSubstr(", gathered weights "), HasSubstr("on cpu for each of its 2 ranks\n")));
  EXPECT_THAT(whole, AllOf(HasSubstr("zero_stage: 0, as configured"), Not(HasSubstr("gathered weights"))));
}

TEST_F(RunPlanTest, DryRunSeesWhatARunWouldRefuse) {
  ASSERT_EQ(run_->train("used", {"max_steps=3"}), kExitOk);
  const auto report = [](const std::vector<std::string>& more) {
    std::vector<std::string> overrides = {"max_steps=3"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    RunPlan p(run_->settings("used", overrides));
    return dry_run_report(p);
  };
  EXPECT_THAT(report({}), HasSubstr("takes up"));
  EXPECT_THAT(error_of([&] { report({"learning_rate=0.5"}); }), HasSubstr("learning_rate: 0.01 -> 0.5"));
  EXPECT_THAT(error_of([&] { report({"resume=never"}); }), HasSubstr("not empty"));
  std::ofstream(run_->output("a-file")) << "x";
  at::set_num_threads(1);
  report({"num_threads=2"});
  EXPECT_EQ(at::get_num_threads(), 2) << "the machine is compared as the run would set it up";
  at::set_num_threads(1);
  EXPECT_THAT(error_of([&] { report({"output_dir=" + run_->output("a-file/run").string()}); }),
              HasSubstr("a file at"));
}

TEST_F(RunPlanTest, DryRunRefusesAndSkipsTheSnapshotsThatARunWould) {
  const std::vector<std::string> steps = {"max_steps=6", "save_steps=2", "save_total_limit=5"};
  ASSERT_EQ(run_->train("looked-at", steps), kExitOk);
  const std::filesystem::path snapshots = run_->output("looked-at") / kSnapshotFolder;
  const auto report = [&](const std::string& more) {
    std::vector<std::string> overrides = steps;
    overrides.push_back(more);
    RunPlan p(run_->settings("looked-at", overrides));
    return dry_run_report(p);
  };
  const std::string older = "resume=" + (snapshots / snapshot_name(2)).string();
  EXPECT_THAT(error_of([&] { report(older); }), HasSubstr("the newer snapshot"));
  // A byte that changed without a change of size: the checksum tells, and nothing is set aside.
  std::fstream file(snapshots / snapshot_name(6) / rank_file_name(0),
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-8, std::ios::end);
  file.write("tampered", 8);
  file.close();
  EXPECT_THAT(report("resume=auto"), HasSubstr("takes up " + (snapshots / snapshot_name(4)).string()));
  EXPECT_THAT(trainer_test::snapshots_of(run_->output("looked-at")),
              ElementsAre("step-00000002", "step-00000004", "step-00000006"));
}

}  // namespace
}  // namespace satune::run_plan_test
