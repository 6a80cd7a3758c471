// The whole loop in this process: what it learns, saves and refuses. Kills: resume_test.cpp.
#include "trainer/fine_tune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "data/files/error.h"
#include "model/files/safetensors.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/snapshot_reader.h"

namespace satune::trainer_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(FineTune, LearnsAndLogsEveryStepOnce) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train("run", {"max_steps=40", "lr_scheduler_type=constant"}), kExitOk);
  const auto rows = metric_rows(tiny.output("run"));
  ASSERT_EQ(rows.size(), 40U);
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i].at("step"), i + 1);
  EXPECT_LT(rows.back().at("loss").get<double>(), 0.7 * rows.front().at("loss").get<double>());
  EXPECT_TRUE(rows.back().contains("eval_loss"));
  EXPECT_GT(rows.back().at("num_tokens"), rows.front().at("num_tokens"));
  EXPECT_EQ(read_json_file(tiny.output("run") / "config.json").at("learning_rate"), 0.01);
}

TEST(FineTune, GradientAccumulationEqualsOneLargeBatch) {
  const TinyRun tiny;
  tiny.train("large", {"per_device_train_batch_size=4", "gradient_accumulation_steps=1"});
  tiny.train("small", {"per_device_train_batch_size=1", "gradient_accumulation_steps=4"});
  const auto large = metric_rows(tiny.output("large")), small = metric_rows(tiny.output("small"));
  ASSERT_EQ(large.size(), small.size());
  for (size_t i = 0; i < large.size(); ++i) {
    for (const char* key : {"loss", "grad_norm"}) {
      const double expected = large[i].at(key);
      EXPECT_NEAR(small[i].at(key).get<double>(), expected, 2e-5 * expected) << key << " of step " << i + 1;
    }
    EXPECT_EQ(small[i].at("num_tokens"), large[i].at("num_tokens"));
  }
}

TEST(FineTune, TwoRunsAreBitwiseTheSame) {
  const TinyRun tiny;
  for (const char* name : {"a", "b"}) tiny.train(name, {"precision=bf16", "num_threads=2"});
  EXPECT_EQ(repeatable_rows(tiny.output("a")), repeatable_rows(tiny.output("b")));
  EXPECT_EQ(snapshot_tensors(tiny.output("a"), 10), snapshot_tensors(tiny.output("b"), 10));
}

TEST(FineTune, RecordingPoliciesAreBitwiseTheSame) {
  const TinyRun tiny;
  tiny.train("keep", {"gradient_checkpointing=false"});
  for (const char* policy : {"true", "selective", "auto"}) {
    tiny.train(policy, {std::string("gradient_checkpointing=") + policy});
    EXPECT_EQ(repeatable_rows(tiny.output(policy)), repeatable_rows(tiny.output("keep"))) << policy;
    EXPECT_EQ(snapshot_tensors(tiny.output(policy), 10), snapshot_tensors(tiny.output("keep"), 10));
  }
}

TEST(FineTune, HalfPrecisionWeightsMoveAtSmallLearningRates) {
  const TinyRun tiny;
  tiny.train("run", {"precision=bf16", "learning_rate=1e-5", "lr_scheduler_type=constant", "warmup_steps=0",
                     "max_steps=20"});
  const SnapshotReader snapshot(tiny.output("run") / "snapshots/step-00000020");
  const Checkpoint base(tiny.model());
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const auto index = static_cast<size_t>(snapshot.table().find(name) - snapshot.table().tensors().data());
  const at::Tensor master = snapshot.tensor(index);
  const auto* before = reinterpret_cast<const float*>(base.find(name)->bytes.data());
  double moved = 0;
  for (int64_t i = 0; i < master.numel(); ++i) {
    moved += std::abs(master.const_data_ptr<float>()[i] - before[i]) / static_cast<double>(master.numel());
  }
  // Twenty steps of about 1e-5 add up in the master, although one is below the resolution of bf16 at 0.05.
  EXPECT_GT(moved, 5e-5);
}

TEST(FineTune, FrozenTensorsHaveNoState) {
  const TinyRun tiny;
  ASSERT_EQ(
      tiny.train("run", {R"(unfrozen_parameters=["model.layers.[23].","lm_head"])", "export_at_end=true"}),
      kExitOk);
  const SafetensorsFile file(tiny.output("run") / "snapshots/step-00000010/rank-00000.safetensors");
  EXPECT_EQ(file.find("master.model.embed_tokens.weight"), nullptr);
  EXPECT_NE(file.find("exp_avg.model.layers.2.mlp.up_proj.weight"), nullptr);
  const Checkpoint base(tiny.model()), exported(tiny.output("run") / "export");
  const auto same = [&](const std::string& name) {
    return std::ranges::equal(base.find(name)->bytes, exported.find(name)->bytes);
  };
  EXPECT_TRUE(same("model.embed_tokens.weight"));
  EXPECT_TRUE(same("model.layers.1.mlp.up_proj.weight"));
  EXPECT_FALSE(same("model.layers.2.mlp.up_proj.weight"));
  EXPECT_FALSE(same("lm_head.weight"));

  const SnapshotReader snapshot(tiny.output("run") / "snapshots/step-00000010");
  for (size_t i = 0; i < snapshot.table().tensors().size(); ++i) {
    const at::Tensor tensor = snapshot.tensor(i);
    const StoredTensor* stored = exported.find(snapshot.table().tensors()[i].name);
    ASSERT_EQ(stored->bytes.size(), tensor.nbytes());
    EXPECT_EQ(std::memcmp(stored->bytes.data(), tensor.const_data_ptr(), tensor.nbytes()), 0);
  }
}

TEST(FineTune, KeepsTheNewestSnapshotsAndTheBest) {
  const TinyRun tiny;
  tiny.train("last", {"save_steps=2", "save_total_limit=2"});
  EXPECT_THAT(snapshots_of(tiny.output("last")), ElementsAre("step-00000008", "step-00000010"));
  // A learning rate far too high, so that the last evaluation is not the best.
  tiny.train("best", {"eval_steps=1", "save_total_limit=1", "keep_best=true", "learning_rate=3",
                      "lr_scheduler_type=constant", "max_grad_norm=0", "warmup_steps=0"});
  int64_t best = 0;
  double lowest = std::numeric_limits<double>::infinity();
  for (const Json& row : metric_rows(tiny.output("best"))) {
    if (row.at("eval_loss").is_null() || row.at("eval_loss") >= lowest) continue;
    lowest = row.at("eval_loss");
    best = row.at("step");
  }
  ASSERT_LT(best, 10);
  EXPECT_THAT(snapshots_of(tiny.output("best")), ElementsAre(snapshot_name(best), snapshot_name(10)));
}

TEST(FineTune, StopsEarlyWhenPatienceEnds) {
  const TinyRun tiny;
  const std::vector<std::string> wild = {"eval_steps=1", "patience=2",      "learning_rate=3",
                                         "max_steps=30", "max_grad_norm=0", "warmup_steps=0"};
  ASSERT_EQ(tiny.train("run", wild), kExitOk);
  const auto rows = metric_rows(tiny.output("run"));
  EXPECT_LT(rows.size(), 30U);
  // Continuing a run that ended is not more training.
  ASSERT_EQ(tiny.train("run", wild), kExitOk);
  EXPECT_EQ(metric_rows(tiny.output("run")).size(), rows.size());
}

TEST(FineTune, SavesByTheClock) {
  const TinyRun tiny;
  tiny.train("run", {"save_minutes=1e-9", "save_total_limit=20"});
  EXPECT_EQ(snapshots_of(tiny.output("run")).size(), 10U);
}

TEST(FineTune, ExportsEveryEpochAndTheEnd) {
  const TinyRun tiny;
  // 36 records of 4 rows a step: 9 steps an epoch.
  const std::vector<std::string> overrides = {"max_steps=20", "export_every_epoch=true",
                                              "export_at_end=true"};
  ASSERT_EQ(tiny.train("run", overrides), kExitOk);
  for (const char* name : {"export-epoch-0001", "export-epoch-0002", "export"}) {
    EXPECT_NO_THROW(Checkpoint(tiny.output("run") / name)) << name;
  }
  EXPECT_FALSE(std::filesystem::exists(tiny.output("run") / "export-epoch-0003"));
  // More steps make a new export; none leave it alone.
  const auto weights = [&] { return content_of(tiny.output("run") / "export/model.safetensors"); };
  const std::string before = weights();
  ASSERT_EQ(tiny.train("run", overrides), kExitOk);
  EXPECT_TRUE(weights() == before);
  ASSERT_EQ(tiny.train("run", {"max_steps=21", "export_at_end=true", "allow_changes=true"}), kExitOk);
  EXPECT_FALSE(weights() == before);
}

TEST(FineTune, RefusesAUsedFolderWithoutResume) {
  const TinyRun tiny;
  tiny.train("run", {"max_steps=1", "warmup_steps=0"});
  try {
    tiny.train("run", {"resume=never"});
    FAIL() << "trained into a used folder";
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), HasSubstr("not empty"));
  }
}

}  // namespace
}  // namespace satune::trainer_test
