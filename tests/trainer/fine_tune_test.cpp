// The whole loop in this process: what it learns, saves and refuses. Kills: resume_test.cpp.
#include "trainer/fine_tune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cmath>
#include <limits>
#include <set>
#include <tuple>

#include "data/files/error.h"
#include "model/files/safetensors.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/snapshot.h"
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

// pain: gradient-accumulation normalisation.
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

// rival: bf16 gradient accumulation over many micro-steps without compensation. Of one record a thousand
// times the mean gradient is that of the record; a bf16 sum would stand still after 256 of them.
TEST(FineTune, AThousandMicroBatchesAddUpInHalfPrecision) {
  const TinyRun tiny;
  Json records = Json::array();
  for (int i = 0; i < 1024; ++i)
    records.push_back({{"instruction", "river stone"}, {"output", "seven cloud green"}});
  const auto data = tiny.directory().write("same.json", records.dump());
  const auto grad_norm = [&](const std::string& name, const std::string& accumulation) {
    tiny.train(
        name, {"precision=bf16", "max_steps=1", "warmup_steps=0", "val_size=0", "train_file=" + data.string(),
               "per_device_train_batch_size=1", "gradient_accumulation_steps=" + accumulation});
    return metric_rows(tiny.output(name)).at(0).at("grad_norm").get<double>();
  };
  const double one = grad_norm("one", "1");
  EXPECT_NEAR(grad_norm("thousand", "1024"), one, 0.01 * one);
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

// pain: bf16 weights that stop moving at small lr. Nineteen updates of about 1e-5 add up in the master,
// although one of them is below the resolution of bf16 at 0.05 (2e-4). Masters are compared with masters: the
// rounding of the loaded weights is no movement.
TEST(FineTune, HalfPrecisionWeightsMoveAtSmallLearningRates) {
  const TinyRun tiny;
  tiny.train("run", {"precision=bf16", "learning_rate=1e-5", "lr_scheduler_type=constant", "warmup_steps=0",
                     "weight_decay=0", "max_steps=20", "save_steps=1", "save_total_limit=20"});
  const auto master_after = [&](int64_t step) {
    const SnapshotReader snapshot(tiny.output("run") / "snapshots" / snapshot_name(step));
    const TensorInfo* info = snapshot.table().find("model.layers.0.mlp.up_proj.weight");
    return snapshot.elements(static_cast<size_t>(info - snapshot.table().tensors().data()), 0, info->numel());
  };
  const at::Tensor first = master_after(1), last = master_after(20);
  double moved = 0;
  for (int64_t i = 0; i < first.numel(); ++i) {
    moved += std::abs(last.const_data_ptr<float>()[i] - first.const_data_ptr<float>()[i]) /
             static_cast<double>(first.numel());
  }
  EXPECT_GT(moved, 5e-5);
  EXPECT_LT(moved, 19 * 1.05e-5);
}

// pain: wrong dtype in the exported config.
TEST(FineTune, AnExportSaysTheDtypeThatItHas) {
  const TinyRun tiny;
  for (const auto& [setting, name, stored] :
       {std::tuple("auto", "float32", "F32"), std::tuple("bfloat16", "bfloat16", "BF16"),
        std::tuple("float16", "float16", "F16")}) {
    ASSERT_EQ(tiny.train(setting, {"precision=bf16", "max_steps=3", "export_at_end=true",
                                   std::string("export_dtype=") + setting}),
              kExitOk);
    const auto folder = tiny.output(setting) / "export";
    const Json config = read_json_file(folder / "config.json");
    EXPECT_EQ(config.at("dtype"), name);
    EXPECT_EQ(config.at("torch_dtype"), name);
    const SafetensorsFile file(folder / "model.safetensors");
    for (const auto& [tensor, entry] : file.tensors()) EXPECT_EQ(entry.dtype, stored) << tensor;
  }
}

/// A disk that takes everything but the metrics.
class BrokenSinks : public FileOps {
 public:
  int open(const char* path, int flags, unsigned mode) override {
    const int fd = FileOps::open(path, flags, mode);
    const std::string name = std::filesystem::path(path).filename();
    const bool sink =
        name.find("metrics.jsonl") != std::string::npos || name.find("tfevents") != std::string::npos;
    if (sink) {
      sinks_.insert(fd);
    } else {
      sinks_.erase(fd);
    }
    return fd;
  }
  ssize_t write(int fd, const void* data, size_t size) override {
    if (!sinks_.contains(fd)) return FileOps::write(fd, data, size);
    ++failures;
    return errno = ENOSPC, -1;
  }
  int failures = 0;

 private:
  std::set<int> sinks_;
};

// pain: a metrics sink that fails kills the run.
TEST(FineTune, ARunEndsWellWithoutItsSinks) {
  const TinyRun tiny;
  BrokenSinks broken;
  ASSERT_EQ(tiny.train("run", {"export_at_end=true"}, broken), kExitOk);
  EXPECT_GT(broken.failures, 0);
  ASSERT_EQ(tiny.train("whole", {"export_at_end=true"}), kExitOk);
  EXPECT_EQ(snapshot_tensors(tiny.output("run"), 10), snapshot_tensors(tiny.output("whole"), 10));
  EXPECT_TRUE(std::filesystem::exists(tiny.output("run") / "export/model.safetensors"));
}

/// The names of all files that are opened through it.
class OpenedFiles : public FileOps {
 public:
  int open(const char* path, int flags, unsigned mode) override {
    names += std::filesystem::path(path).filename().string() + "\n";
    return FileOps::open(path, flags, mode);
  }
  std::string names;
};

// The other ranks wait for an export without a time limit: only calls that are watched end one that hangs.
TEST(FineTune, AnExportIsWrittenThroughTheCallsThatAreWatched) {
  const TinyRun tiny;
  OpenedFiles opened;
  ASSERT_EQ(tiny.train("run", {"max_steps=3", "export_at_end=true"}, opened), kExitOk);
  for (const char* name : {"model.safetensors", "generation_config.json", "tokenizer.model",
                           "modeling_sa_llama.py", "satune_template.json", "exports.json"})
    EXPECT_THAT(opened.names, HasSubstr(name));
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
    const at::Tensor tensor = snapshot.elements(i, 0, snapshot.table().tensors()[i].numel());
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
