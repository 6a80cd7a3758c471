// ZeRO stages: the same numbers whatever lives where.
#include "trainer/sharding.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "evaluation/device_batch.h"
#include "tests/trainer/rank_threads.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/evaluation_loss.h"
#include "trainer/memory_plan.h"
#include "trainer/model_modes.h"
#include "trainer/resume.h"
#include "trainer/shard_schedule.h"
#include "trainer/step.h"

namespace satune::trainer_test {
namespace {

constexpr int64_t kRowsPerStep = 8;

/// What a run of a few steps comes to, put together from the shares of all ranks.
struct Outcome {
  std::vector<double> losses, norms, eval_losses;
  std::map<std::string, at::Tensor> state;  ///< "master.NAME" ...
  Traffic traffic;                          ///< of rank 0
};

struct Case {
  int64_t ranks = 1;
  int stage = 0;
  std::vector<std::string> overrides;
  int64_t steps = 3;
  int64_t shard_group_size = 0;  ///< 0 = all
  double learning_rate = 0.01;
};

/// One rank of a run without its loop.
struct Rank {
  Rank(const Settings& settings, RankOfTest& rank, int stage)
      : plan(settings, rank.world.size, kRowsPerStep),
        type(settings.precision == Precision::kFp32 ? at::kFloat : at::kBFloat16),
        model(plan.config(), plan.trained_mask(), type, at::kCPU, parameter_layout(stage, rank.world.size)),
        sharding(model, rank.groups(), *rank.coordinator, stage,
                 gradient_element_bytes(settings, rank.world) == 4 ? at::kFloat : type),
        optimizer(model.weights().trained, sharding.weight_shards(), AdamWOptions(settings),
                  sharding.optimizer_owner(), at::kCPU),
        step(model, sharding, optimizer, rank.groups(), *rank.coordinator, plan.train(), settings,
             std::vector<Recording>(4, Recording::kRecompute)) {
    use_fp8(model, settings, stage);
    load_pretrained(optimizer, sharding, Checkpoint(plan.model_directory()));
    sharding.publish_weights();
  }
  RunPlan plan;
  at::ScalarType type;
  Llama model;
  Sharding sharding;
  AdamW optimizer;
  TrainingStep step;
};

void collect_state(const AdamW& optimizer, Outcome& outcome) {
  const ParameterBuffers& weights = optimizer.weights();
  for (int segment = 0; segment < weights.num_segments(); ++segment) {
    for (const ShardPiece& piece : shard_pieces(weights, segment, optimizer.owner())) {
      const TensorInfo& info = weights.table().tensors()[piece.tensor];
      for (const std::string_view part : kOptimizerParts) {
        at::Tensor& whole = outcome.state[fmt::format("{}.{}", part, info.name)];
        if (!whole.defined()) whole = at::zeros({info.numel()}, at::kFloat);
        whole.narrow(0, piece.elements.begin, piece.elements.size())
            .copy_(optimizer.part(part, piece.tensor, piece.elements));
      }
    }
  }
}

Outcome run_steps(const TinyRun& tiny, const Case& c) {
  Outcome outcome;
  std::mutex mutex;
  const Settings settings = tiny.settings("unused", c.overrides);
  run_as_ranks(c.ranks, c.shard_group_size, [&](RankOfTest& rank) {
    Rank r(settings, rank, c.stage);
    std::vector<double> losses, norms, eval_losses;
    for (int64_t i = 0; i < c.steps; ++i) {
      const StepResult result = r.step.run(r.plan.position(i), c.learning_rate, i + 1);
      losses.push_back(result.loss);
      norms.push_back(result.grad_norm);
    }
    eval_losses.push_back(
        evaluation_loss(r.model, *r.plan.eval(), 2, *rank.all, *rank.coordinator, r.sharding));
    const std::lock_guard lock(mutex);
    collect_state(r.optimizer, outcome);
    if (rank.world.rank == 0) outcome.traffic = rank.all->traffic();
    if (outcome.losses.empty()) {
      outcome.losses = losses;
      outcome.norms = norms;
      outcome.eval_losses = eval_losses;
    }
    // The same decision on every rank needs the same numbers on every rank.
    EXPECT_EQ(outcome.losses, losses);
    EXPECT_EQ(outcome.norms, norms);
    EXPECT_EQ(outcome.eval_losses, eval_losses);
  });
  return outcome;
}

void expect_same(const Outcome& a, const Outcome& b, const std::string& what) {
  EXPECT_EQ(a.losses, b.losses) << what;
  EXPECT_EQ(a.norms, b.norms) << what;
  EXPECT_EQ(a.eval_losses, b.eval_losses) << what;
  ASSERT_EQ(a.state.size(), b.state.size());
  for (const auto& [name, value] : a.state) {
    EXPECT_TRUE(at::equal(value, b.state.at(name))) << what << ": " << name;
  }
}

class Stages : public ::testing::TestWithParam<int64_t> {};

TEST_P(Stages, AgreeBitwiseAtEqualWorldSize) {
  for (const bool tied : {false, true}) {
    const TinyRun tiny(40, tied);
    for (const char* precision : {"precision=fp32", "precision=bf16"}) {
      for (const char* frozen :
           {"unfrozen_parameters=[]", R"(unfrozen_parameters=["model.layers.[23].","model.norm"])"}) {
        const std::vector<std::string> overrides = {precision, frozen};
        const Outcome replicated = run_steps(tiny, {GetParam(), 0, overrides});
        ASSERT_TRUE(std::isfinite(replicated.losses.back()));
        for (const int stage : {1, 2, 3}) {
          const Outcome sharded = run_steps(tiny, {GetParam(), stage, overrides});
          expect_same(replicated, sharded,
                      fmt::format("stage {} {} {} tied {}", stage, precision, frozen, tied));
        }
      }
    }
  }
}

TEST(Sharding, StagesAgreeBitwiseInMemoryModes) {
  const TinyRun tiny(40, /*tied=*/true);
  for (const auto& [masters, moments] :
       {std::pair("split", "fp32"), std::pair("none", "bf16"), std::pair("none", "8bit")}) {
    const std::vector<std::string> overrides = {"precision=bf16", std::string("master_weights=") + masters,
                                                std::string("optimizer_moments=") + moments};
    const Outcome replicated = run_steps(tiny, {2, 0, overrides});
    ASSERT_TRUE(std::isfinite(replicated.losses.back()));
    for (const int stage : {1, 3}) {
      expect_same(replicated, run_steps(tiny, {2, stage, overrides}),
                  fmt::format("stage {} {} {}", stage, masters, moments));
    }
  }
}

// Stage 3 makes its weights in 8 bits for each product, the others once a step.
TEST(Sharding, StagesAgreeBitwiseInFp8) {
  const TinyRun tiny(40);
  for (const char* frozen :
       {"unfrozen_parameters=[]", R"(unfrozen_parameters=[".*k_proj", "model.layers.3."])"}) {
    const std::vector<std::string> overrides = {"precision=bf16", "fp8=true", frozen};
    const Outcome replicated = run_steps(tiny, {2, 0, overrides});
    ASSERT_TRUE(std::isfinite(replicated.losses.back()));
    EXPECT_NE(replicated.losses, run_steps(tiny, {2, 0, {"precision=bf16", frozen}}).losses);
    for (const int stage : {1, 2, 3}) {
      expect_same(replicated, run_steps(tiny, {2, stage, overrides}),
                  fmt::format("stage {} {}", stage, frozen));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Stages, ::testing::Values(1, 2, 3, 4));

TEST(Sharding, EqualGlobalBatchesGiveTheSameTrajectoryOnAnyNumberOfRanks) {
  // At a rate at which the loss falls: where it leaps, the last bits of a sum grow to 1e-6 within ten steps.
  constexpr double kRate = 1e-3;
  const TinyRun tiny(120);
  const Outcome one = run_steps(tiny, {1, 0, {}, 20, 0, kRate});
  EXPECT_LT(one.losses.back(), one.losses.front());
  for (const int64_t ranks : {2, 3, 4}) {
    const Outcome many = run_steps(tiny, {ranks, 3, {}, 20, 0, kRate});
    ASSERT_EQ(many.losses.size(), one.losses.size());
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(many.losses[i], one.losses[i], 1e-6 * one.losses[i]) << ranks << " ranks, step " << i;
    }
  }
}

TEST(Sharding, RanksWithoutDataNeitherHangNorSkewTheMean) {
  // One micro-batch takes all rows of a step: three of four ranks have nothing, ever.
  const TinyRun tiny(60);
  const std::vector<std::string> one_row = {"per_device_train_batch_size=8"};
  const Outcome one = run_steps(tiny, {1, 0, one_row});
  for (const int stage : {0, 3}) {
    const Outcome four = run_steps(tiny, {4, stage, one_row});
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(four.losses[i], one.losses[i], 1e-6 * one.losses[i]);
      EXPECT_NEAR(four.norms[i], one.norms[i], 1e-5 * one.norms[i]);
    }
  }
}

TEST(Sharding, ShardGroupsWithReplicasTrainTheSame) {
  const TinyRun tiny(60);
  const Outcome one = run_steps(tiny, {1, 0, {}, 10});
  const Outcome hybrid = run_steps(tiny, {4, 3, {}, 10, 2});
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(hybrid.losses[i], one.losses[i], 1e-6 * one.losses[i]);
    EXPECT_NEAR(hybrid.norms[i], one.norms[i], 1e-5 * one.norms[i]);
  }
  for (const int stage : {0, 1, 2}) expect_same(hybrid, run_steps(tiny, {4, stage, {}, 10, 2}), "hybrid");
}

TEST(Sharding, SendsWhatTheStagesPromise) {
  const TinyRun tiny;
  constexpr int64_t kRanks = 4, kSteps = 3, kMicroSteps = kRowsPerStep / (2 * kRanks);
  const Settings settings = tiny.settings("unused");
  const RunPlan plan(settings);
  const ParameterBuffers buffers(plan.table(), std::vector<bool>(plan.table().tensors().size(), true),
                                 at::kFloat, at::kCPU, parameter_layout(3, kRanks));
  int64_t bytes = 0, segment_0 = 0, head = 0, last_layer = 0;
  for (int i = 0; i < buffers.num_segments(); ++i) {
    const int64_t flat = buffers.flat(i).numel() * 4;
    bytes += flat;
    if (i == 0) segment_0 = flat;
    if (i == buffers.num_segments() - 1) head = flat;
    if (i == buffers.num_segments() - 2) last_layer = flat;
  }
  const auto sent = [&](int64_t whole) { return whole / kRanks * (kRanks - 1); };
  for (const int stage : {0, 1, 2, 3}) {
    const Traffic traffic = run_steps(tiny, {kRanks, stage, {}, kSteps}).traffic;
    EXPECT_EQ(traffic.reduced, kSteps * kMicroSteps * sent(bytes)) << "stage " << stage;
    if (stage < 3) {
      const int64_t initial = stage == 0 ? 0 : sent(bytes);  // what ranks have loaded reaches the others once
      EXPECT_EQ(traffic.gathered, initial + kSteps * sent(bytes)) << "stage " << stage;
    } else {
      // Forward and backward, but the head and the last layer stay from one to the other, and the embedding's
      // backward reads no weights. Beyond the steps, an evaluation of one forward per batch round.
      const int64_t per_micro_step = 2 * bytes - head - last_layer - segment_0;
      EXPECT_LE(traffic.gathered,
                (kSteps * kMicroSteps * per_micro_step + 2 * bytes) / kRanks * (kRanks - 1));
      EXPECT_GE(traffic.gathered, sent(kSteps * kMicroSteps * (per_micro_step - segment_0)));
    }
  }
}

// Memory and traffic plans replay what Sharding does. What is sent: tests/distributed/test_traffic.py.
TEST(Sharding, PoolsAreThoseOfTheSchedule) {
  struct Cut {
    int64_t ranks = 1, shard_group = 0;
    bool tied = false;
    const char* trained = "unfrozen_parameters=[]";
  };
  const char* some = R"(unfrozen_parameters=["model.layers.[23].","model.norm"])";
  for (const Cut& cut : {Cut{2, 0, false}, Cut{2, 0, true}, Cut{2, 0, false, some}, Cut{4, 2, true}}) {
    const TinyRun tiny(60, cut.tied);
    const Settings settings = tiny.settings("unused", {"per_device_train_batch_size=1", cut.trained});
    for (const int stage : {0, 1, 2, 3}) {
      run_as_ranks(cut.ranks, cut.shard_group, [&](RankOfTest& rank) {
        Rank r(settings, rank, stage);
        r.step.run(r.plan.position(0), 0.01, 1);
        evaluation_loss(r.model, *r.plan.eval(), 2, *rank.all, *rank.coordinator, r.sharding);
        r.step.run(r.plan.position(1), 0.01, 2);
        const SegmentSizes sizes(r.plan.table(), r.plan.trained_mask(), cut.ranks);
        const ShardSchedule schedule = shard_schedule(sizes, {cut.ranks, stage, cut.shard_group});
        const Sharding::PoolBytes found = r.sharding.pool_bytes();
        const std::string what = fmt::format("stage {}, {} ranks in groups of {}, tied {}, {}", stage,
                                             cut.ranks, cut.shard_group, cut.tied, cut.trained);
        constexpr int64_t kElement = 4;  // fp32 throughout
        EXPECT_EQ(found.parameters, kElement * schedule.parameter_pool) << what;
        EXPECT_EQ(found.gradients, kElement * schedule.gradient_pool) << what;
        EXPECT_EQ(found.replicas, kElement * schedule.replica_pool) << what;
      });
    }
  }
}

TEST(Sharding, StageThreeKeepsTwoSegmentsGathered) {
  const TinyRun tiny;
  const Settings settings = tiny.settings("unused");
  run_as_ranks(2, [&](RankOfTest& rank) {
    Rank r(settings, rank, 3);
    const ParameterBuffers& weights = r.model.weights().trained;
    r.step.run(r.plan.position(0), 0.01, 1);
    for (int i = 0; i < weights.num_segments(); ++i) {
      EXPECT_FALSE(weights.attached(i)) << "an update leaves nothing gathered";
      EXPECT_EQ(weights.flat(i).storage().data(), nullptr) << "segment " << i;
    }
    class Watch : public SegmentHooks {
     public:
      Watch(Sharding& sharding, const ParameterBuffers& weights) : sharding_(sharding), weights_(weights) {}
      void before_forward(int segment) override {
        sharding_.before_forward(segment);
        int64_t gathered = 0;
        for (int i = 0; i < weights_.num_segments(); ++i) gathered += weights_.attached(i) ? 1 : 0;
        EXPECT_LE(gathered, 2);
        EXPECT_TRUE(weights_.attached(segment));
      }

     private:
      Sharding& sharding_;
      const ParameterBuffers& weights_;
    } watch(r.sharding, weights);
    r.model.evaluate(to_device(r.plan.train().make_batch(0, 0, 1), at::kCPU), watch);
  });
}

}  // namespace
}  // namespace satune::trainer_test
