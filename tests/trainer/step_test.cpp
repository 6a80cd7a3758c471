// One optimizer step, and losses that are not finite.
#include "trainer/step.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "data/files/error.h"
#include "data/tokenizer.h"
#include "evaluation/device_batch.h"
#include "tests/model_configs.h"
#include "tests/trainer/rank_threads.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/memory_plan.h"
#include "trainer/snapshot_reader.h"

namespace satune::trainer_test {
namespace fs = std::filesystem;
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string describe(const std::vector<StepPosition>& batches) {
  std::string text;
  for (const StepPosition& b : batches) text += fmt::format("{}+{} ", b.first_row, b.rows);
  return text;
}

TEST(MicroBatches, CoverTheRowsOfAStepOnceOverAllRanks) {
  const StepPosition step{0, 40, 10};
  EXPECT_EQ(describe(micro_batches(step, 2, {0, 1})), "40+2 42+2 44+2 46+2 48+2 ");
  EXPECT_EQ(describe(micro_batches(step, 4, {0, 1})), "40+4 44+4 48+2 ");
  EXPECT_EQ(describe(micro_batches(step, 2, {0, 2})), "40+2 44+2 48+2 ");
  // The second rank's last micro-batch is empty, but it is there: ranks gather and reduce together.
  EXPECT_EQ(describe(micro_batches(step, 2, {1, 2})), "42+2 46+2 50+0 ");
}

TEST(LongestRows, AreThoseOfTheMostTokensWhereverTheyStand) {
  const TinyRun tiny;
  for (const char* packing : {"packing=false", "packing=true"}) {
    RunPlan plan(tiny.settings("unused", {packing, "val_size=0"}));
    BatchSource& data = plan.train();
    std::vector<int64_t> lengths;
    for (int64_t row = 0; row < data.rows(0); ++row) lengths.push_back(data.token_count(0, row, 1));
    std::sort(lengths.rbegin(), lengths.rend());
    const int64_t rows = std::min<int64_t>(3, data.rows(0));
    const Batch batch = make_batch(longest_rows(data, 0, rows));
    EXPECT_EQ(static_cast<int64_t>(batch.tokens.size()),
              std::accumulate(lengths.begin(), lengths.begin() + rows, int64_t{0}));
    EXPECT_EQ(longest_rows(data, 0, 1000).size(), 40U) << "no more than there are";
  }
}

/// Model, optimizer and data of a tiny run, without the run.
struct Steps {
  explicit Steps(const TinyRun& tiny, const std::vector<std::string>& more = {})
      : settings(tiny.settings("unused", more)),
        plan(settings),
        model(plan.config(), {}, at::kFloat, at::kCPU) {
    load_weights(model.weights(), Checkpoint(plan.model_directory()), plan.dense_source());
    optimizer.emplace(model.weights().trained, AdamWOptions(settings));
    sharding.emplace(model, groups, coordinator, 0, at::kFloat);
    step.emplace(model, *sharding, *optimizer, groups, coordinator, plan.train(), settings,
                 std::vector<Recording>(4, Recording::kKeep));
  }
  /// Alone, and asked to stop at a checkpoint of choice.
  class StoppingCoordinator : public ForwardingCoordinator {
   public:
    using ForwardingCoordinator::ForwardingCoordinator;
    void checkpoint() override {
      if (--checkpoints_left == 0) throw Interrupted();
    }
    int64_t checkpoints_left = 0;
  };
  Settings settings;
  RunPlan plan;
  Llama model;
  std::unique_ptr<ProcessGroup> group = make_local_group();
  ProcessGroups groups{*group, *group, *group};
  std::unique_ptr<Coordinator> solo = make_solo_coordinator([] { return std::string(); });
  StoppingCoordinator coordinator{*solo};
  std::optional<AdamW> optimizer;
  std::optional<Sharding> sharding;
  std::optional<TrainingStep> step;
};

// pain: all-masked sample (here a whole step of them).
TEST(TrainingStep, WithoutTargetsUpdatesNothing) {
  const TinyRun tiny;
  Steps steps(tiny);
  const at::Tensor before = steps.model.weights().trained.flat(1).clone();
  const StepResult result = steps.step->run({0, steps.plan.train().rows(0), 4}, 0.1, 1);
  EXPECT_TRUE(std::isnan(result.loss));
  EXPECT_EQ(result.grad_norm, 0);
  EXPECT_TRUE(result.finite);
  EXPECT_FALSE(result.updated);
  EXPECT_TRUE(at::equal(before, steps.model.weights().trained.flat(1)));
}

// rival: masked loss divided by all tokens instead of the valid ones.
TEST(TrainingStep, IsNormalisedByTheTargetsOfTheWholeStep) {
  const TinyRun tiny;
  Steps steps(tiny);
  double loss = 0;
  int64_t targets = 0;
  for (int64_t row = 0; row < 4; ++row) {
    const Batch batch = steps.plan.train().make_batch(0, row, 1);
    loss += steps.model.evaluate(to_device(batch, at::kCPU)).loss.item<double>();
    targets += batch.target_count;
  }
  const StepResult result = steps.step->run({0, 0, 4}, 0.1, 1);
  EXPECT_EQ(result.targets, targets);
  EXPECT_NEAR(result.loss, loss / static_cast<double>(targets), 1e-6);
}

TEST(TrainingStep, AStopLeavesTheStateAsItWas) {
  const TinyRun tiny;
  Steps steps(tiny);
  steps.coordinator.checkpoints_left = 10;  // in the backward of the first of two micro-batches
  EXPECT_THROW(steps.step->run({0, 0, 4}, 0.1, 1), Interrupted);
  const StepResult after = steps.step->run({0, 0, 4}, 0.1, 1);
  Steps fresh(tiny);
  const StepResult expected = fresh.step->run({0, 0, 4}, 0.1, 1);
  EXPECT_EQ(after.loss, expected.loss);
  EXPECT_EQ(after.grad_norm, expected.grad_norm);
  for (int i = 0; i < steps.model.weights().trained.num_segments(); ++i) {
    EXPECT_TRUE(at::equal(steps.model.weights().trained.flat(i), fresh.model.weights().trained.flat(i)));
  }
}

TEST(TrainingStep, ParameterBuffersMayBeReusedBetweenForwardAndBackward) {
  const TinyRun tiny;
  Steps steps(tiny), plain(tiny);
  /// Overwrites a segment's weights after its forward and brings them back before its backward, as sharding
  /// will.
  class Poison : public SegmentHooks {
   public:
    explicit Poison(const ParameterBuffers& weights) : weights_(weights) {
      for (int i = 0; i < weights.num_segments(); ++i) saved_.push_back(weights.flat(i).clone());
    }
    void before_forward(int segment) override { weights_.flat(segment).copy_(saved_[segment]); }
    void after_forward(int segment) override { weights_.flat(segment).fill_(std::nanf("")); }
    void before_backward(int segment) override { weights_.flat(segment).copy_(saved_[segment]); }
    void after_backward(int segment) override { weights_.flat(segment).fill_(std::nanf("")); }
    void restore() {
      for (int i = 0; i < weights_.num_segments(); ++i) weights_.flat(i).copy_(saved_[i]);
    }

   private:
    const ParameterBuffers& weights_;
    std::vector<at::Tensor> saved_;
  } poison(steps.model.weights().trained);
  SegmentHooks none;
  const Batch batch = steps.plan.train().make_batch(0, 0, 2);
  for (const Recording kind : {Recording::kKeep, Recording::kSelective, Recording::kRecompute}) {
    const std::vector<Recording> recording(4, kind);
    ParameterBuffers poisoned = steps.model.make_gradients(at::kFloat),
                     expected = plain.model.make_gradients(at::kFloat);
    steps.model.forward_backward(to_device(batch, at::kCPU), 0.1, poisoned, false, recording, poison);
    plain.model.forward_backward(to_device(batch, at::kCPU), 0.1, expected, false, recording, none);
    poison.restore();
    for (int i = 0; i < expected.num_segments(); ++i) {
      EXPECT_TRUE(at::equal(poisoned.flat(i), expected.flat(i))) << "segment " << i;
    }
  }
}

/// Makes the embedding of the last byte of "§" NaN and puts that character into record `record` (1-based).
void poison_record(const TinyRun& tiny, size_t record) {
  const int32_t id = load_tokenizer(tiny.model())->encode("§").back();
  const fs::path path = tiny.model() / "model.safetensors";
  std::string bytes = content_of(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const Json entry = Json::parse(bytes.substr(8, header)).at("model.embed_tokens.weight");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const size_t row = entry.at("shape").at(1).get<size_t>() * sizeof(float);
  const size_t at = 8 + header + entry.at("data_offsets").at(0).get<size_t>() + static_cast<size_t>(id) * row;
  std::memcpy(bytes.data() + at, &nan, sizeof(nan));
  std::ofstream(path, std::ios::binary) << bytes;
  Json records = Json::parse(content_of(tiny.data()));
  records.at(record - 1)["instruction"] = "river §";
  std::ofstream(tiny.data()) << records.dump();
}

// pain: optimizer stepping on NaN. rival: NaN gradients zeroed silently.
TEST(NonFinite, StopsAtTheStateBeforeAndNamesTheRecord) {
  const TinyRun tiny;
  poison_record(tiny, 17);
  const std::vector<std::string> overrides = {"val_size=0", "max_steps=12", "packing=true"};
  std::string message;
  try {
    tiny.train("run", overrides);
  } catch (const BadInput& error) {
    FAIL() << "not the user's mistake: " << error.what();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  const auto rows = metric_rows(tiny.output("run"));
  EXPECT_THAT(message, AllOf(HasSubstr(fmt::format("step {}:", rows.size() + 1)), HasSubstr("train.json"),
                             HasSubstr(": 17;"), HasSubstr("loss nan"), Not(HasSubstr("-nan"))));
  ASSERT_FALSE(rows.empty()) << "the record is in the first step: choose another seed";
  for (const Json& row : rows) EXPECT_TRUE(row.at("loss").is_number());
  const SnapshotReader snapshot(tiny.output("run") / "snapshots" /
                                snapshot_name(static_cast<int64_t>(rows.size())));
  EXPECT_TRUE(snapshot.has_optimizer_state());
}

TEST(NonFinite, SkipLeavesTheStepOutAndCounts) {
  const TinyRun tiny;
  poison_record(tiny, 17);
  ASSERT_EQ(tiny.train("run", {"val_size=0", "max_steps=12", "nonfinite=skip"}), kExitOk);
  const auto rows = metric_rows(tiny.output("run"));
  ASSERT_EQ(rows.size(), 12U);
  int64_t nulls = 0;
  for (const Json& row : rows) nulls += row.at("loss").is_null() ? 1 : 0;
  EXPECT_GE(nulls, 1);
  EXPECT_LE(nulls, 2);
  const SnapshotReader snapshot(tiny.output("run") / "snapshots" / snapshot_name(12));
  EXPECT_EQ(snapshot.state().at("progress").at("skipped_steps"), nulls);
  EXPECT_EQ(snapshot.state().at("progress").at("updates"), 12 - nulls);
}

TEST(MemoryPlan, CountsWhatFactsMeasured) {
  const ModelConfig config = model_configs::llama3("8b");
  PassShape shape{config, 1000};
  shape.element = 2;
  EXPECT_NEAR(layer_activation_bytes(shape, 0, Recording::kKeep) / 1e6, 139, 1);
  EXPECT_NEAR(layer_activation_bytes(shape, 0, Recording::kSelective) / 1e6, 94, 1);
  EXPECT_NEAR(layer_activation_bytes(shape, 0, Recording::kRecompute) / 1e6, 8.2, 0.1);
  Settings settings;
  settings.gradient_accumulation_steps = 1;
  const TensorTable table(config);
  const MemoryPlan plan = plan_memory({settings, config, table, {}, 4096}, {}, int64_t{1} << 50);
  const double gib = 1 << 30;
  EXPECT_NEAR((plan.weights + plan.gradients + plan.master + plan.moments) / gib, 119.7, 0.1);
}

TEST(MemoryPlan, AutoRecomputesNoMoreThanItMust) {
  const TinyRun tiny;
  const Settings settings = tiny.settings("unused", {"gradient_checkpointing=auto"});
  const ModelConfig config = parse_model_config(read_json_file(tiny.model() / "config.json"), "config.json");
  const TensorTable table(config);
  const auto plan_for = [&](int64_t available) {
    return plan_memory({settings, config, table, {}, 64}, {}, available);
  };
  const MemoryPlan roomy = plan_for(int64_t{1} << 40);
  EXPECT_EQ(roomy.recording, std::vector<Recording>(4, Recording::kKeep));
  EXPECT_EQ(plan_for(roomy.total()).recording, roomy.recording);
  const MemoryPlan tight = plan_for(roomy.total() - 1);
  EXPECT_EQ(tight.recording.front(), Recording::kSelective);
  EXPECT_EQ(tight.recording.back(), Recording::kKeep);
  EXPECT_LE(tight.total(), roomy.total() - 1);
  EXPECT_EQ(plan_for(0).recording, std::vector<Recording>(4, Recording::kRecompute));
}

}  // namespace
}  // namespace satune::trainer_test
