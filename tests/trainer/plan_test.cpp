// Memory and traffic plans at shapes and world sizes that no machine here has.
#include <gtest/gtest.h>

#include <numeric>

#include "model/flops.h"
#include "tests/model_configs.h"
#include "trainer/host_staging.h"
#include "trainer/memory_plan.h"
#include "trainer/shard.h"
#include "trainer/traffic_plan.h"

namespace satune::trainer_test {
namespace {

/// A run over a shape, all tensors trained unless `mask` says otherwise.
struct ShapeRun {
  Settings settings;
  ModelConfig config;
  TensorTable table;
  std::vector<bool> mask;

  explicit ShapeRun(const std::string& name) : config(model_configs::llama3(name)), table(config) {
    settings.gradient_accumulation_steps = 2;
  }
  PlannedRun run() const { return {settings, config, table, mask, settings.max_length, true}; }
};

std::vector<int> gathered(const std::vector<ScheduledPass>& passes) {
  std::vector<int> segments;
  for (const ScheduledPass& pass : passes) {
    segments.insert(segments.end(), pass.gather_now.begin(), pass.gather_now.end());
    segments.insert(segments.end(), pass.gather_ahead.begin(), pass.gather_ahead.end());
  }
  return segments;
}

ModelConfig small_config(int layers, bool tied) {
  ModelConfig config = model_configs::config_of({.vocabulary = 100000,
                                                 .hidden = 64,
                                                 .ffn = 128,
                                                 .layers = layers,
                                                 .heads = 2,
                                                 .kv_heads = 2,
                                                 .head_dim = 32});
  config.tie_word_embeddings = tied;
  return config;
}

TEST(ShardSchedule, GathersEachSegmentForwardAndAllButTheLastTwoBackward) {
  const TensorTable table(small_config(4, false));
  const SegmentSizes sizes(table, {}, 2);
  const ShardSchedule schedule = shard_schedule(sizes, {2, 3});
  // Layers 4 and the head are still there when their backward begins, and the embedding's reads no weights.
  EXPECT_EQ(gathered(schedule.first), (std::vector<int>{0, 1, 2, 3, 4, 5, 3, 2, 1}));
  // Layer 1, whose backward was the last to read any, waits for the next forward.
  EXPECT_EQ(gathered(schedule.later), (std::vector<int>{0, 2, 3, 4, 5, 3, 2, 1}));
  for (const int64_t stage : {0, 1, 2})
    EXPECT_TRUE(gathered(shard_schedule(sizes, {2, stage}).first).empty());
}

TEST(ShardSchedule, TiedEmbeddingIsGatheredForBothUses) {
  const TensorTable table(small_config(4, true));
  const ShardSchedule schedule = shard_schedule(SegmentSizes(table, {}, 2), {2, 3});
  EXPECT_EQ(gathered(schedule.first), (std::vector<int>{0, 1, 2, 3, 4, 5, 0, 3, 2, 1}));
  // Three buffers in use at most: the embedding's and two layers'.
  EXPECT_GE(schedule.parameter_pool, SegmentSizes(table, {}, 2).all(0));
}

TEST(ShardSchedule, ReducesTrainedSegmentsOnce) {
  const TensorTable table(small_config(4, false));
  std::vector<bool> mask(table.tensors().size(), true);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = table.tensors()[i].segment >= 3;
  const SegmentSizes sizes(table, mask, 4);
  EXPECT_EQ(sizes.lowest_trained(), 3);
  std::vector<int> reduced;
  for (const ScheduledPass& pass : shard_schedule(sizes, {4, 2}).first) {
    if (pass.reduces) reduced.push_back(pass.segment);
  }
  EXPECT_EQ(reduced, (std::vector<int>{5, 4, 3}));
}

TEST(ShardSchedule, PoolsHoldAFewSegments) {
  const TensorTable table(small_config(12, false));
  const SegmentSizes sizes(table, {}, 2);
  const int64_t largest = sizes.trained[0], layer = sizes.trained[1];
  ASSERT_GT(largest, layer);
  const ShardSchedule schedule = shard_schedule(sizes, {2, 2});
  EXPECT_GE(schedule.gradient_pool, 2 * largest + layer);
  EXPECT_LE(schedule.gradient_pool, 3 * largest + layer);
  EXPECT_EQ(schedule.parameter_pool, 0);
  const ShardSchedule third = shard_schedule(sizes, {2, 3});
  EXPECT_GE(third.parameter_pool, largest + layer);
  EXPECT_LE(third.parameter_pool, 2 * largest + 2 * layer);
  // Received gradients only: one buffer, as large as the head.
  EXPECT_EQ(shard_schedule(sizes, {2, 1}).gradient_pool,
            *std::max_element(sizes.trained.begin(), sizes.trained.end()));
  EXPECT_EQ(shard_schedule(sizes, {1, 0}).gradient_pool, 0);
}

TEST(SegmentSizes, SharesAreEqualAndEndOnBorders) {
  for (const std::string name : {"8b", "70b"}) {
    const ShapeRun run(name);
    for (const int64_t world : {1, 2, 3, 8, 1000, 16384}) {
      const SegmentSizes sizes(run.table, {}, world);
      int64_t all = 0;
      for (const int64_t size : sizes.trained) {
        ASSERT_EQ(size % world, 0);
        if (world > 1) {
          ASSERT_EQ(size / world % kShardBlock, 0);
          ASSERT_EQ(shard_range(size, {world - 1, world}).size(), size / world);
        }
        all += size;
      }
      EXPECT_GE(all, run.table.parameter_count());
      const int64_t border = world > 1 ? world * kShardBlock : 64;
      EXPECT_LT(all, run.table.parameter_count() + static_cast<int64_t>(sizes.trained.size()) * border);
    }
  }
}

TEST(TrafficPlan, NearTheMinimumWhereSegmentsAreLarge) {
  const ShapeRun shape("8b");
  const PlannedRun run = shape.run();
  const auto parameters = static_cast<double>(shape.table.parameter_count());
  for (const int64_t world : {2, 4, 8, 64}) {
    const double part = static_cast<double>(world - 1) / static_cast<double>(world);
    const TrafficPlan stage1 = plan_traffic(run, {world, 1});
    EXPECT_NEAR(stage1.reduced / (part * 2 * parameters), 1, 0.03);  // bf16 gradients
    EXPECT_NEAR(stage1.gathered_at_update / (part * 2 * parameters), 1, 0.03);
    EXPECT_EQ(plan_traffic(run, {world, 0}).gathered_at_update, 2 * stage1.gathered_at_update);  // fp32 sums
    const TrafficPlan stage2 = plan_traffic(run, {world, 2});
    EXPECT_EQ(stage2.per_step(), stage1.per_step());
    EXPECT_NEAR(static_cast<double>(stage1.per_step()) / usual_bytes_per_step(run, {world, 1}), 1, 0.03);
    // Stage 3 gathers embedding, head and two layers once a micro-step, not twice.
    const TrafficPlan stage3 = plan_traffic(run, {world, 3});
    EXPECT_EQ(stage3.gathered_at_update, 0);
    EXPECT_GT(stage3.gathered_first, stage3.gathered_later);
    EXPECT_LT(stage3.gathered_first, part * 4 * parameters);
    EXPECT_GT(stage3.gathered_first, part * 3.5 * parameters);
  }
}

TEST(TrafficPlan, OneRankSendsNothing) {
  const ShapeRun shape("8b");
  for (const int64_t stage : {0, 1, 2, 3}) {
    EXPECT_EQ(plan_traffic(shape.run(), {1, stage}).per_step(), 0);
    EXPECT_EQ(usual_bytes_per_step(shape.run(), {1, stage}), 0);
  }
}

TEST(TrafficPlan, SixteenThousandRanks) {
  for (const std::string name : {"8b", "70b"}) {
    ShapeRun shape(name);
    shape.settings.gradient_accumulation_steps = 512;
    const PlannedRun run = shape.run();
    for (const int64_t stage : {0, 1, 2, 3}) {
      const Sharded sharded{16384, stage};
      const int64_t sent = plan_traffic(run, sharded).per_step(), least = usual_bytes_per_step(run, sharded);
      // In exact arithmetic: nothing wraps, and padding costs less than 2^26 elements a segment.
      const double gathers = stage == 3 ? 2.0 * 512 : 1;
      const double most = static_cast<double>(shape.table.num_segments()) * 0x1p26;
      const double whole = static_cast<double>(shape.table.parameter_count()) + most;
      EXPECT_GT(sent, stage == 3 ? least * 0.75 : least);
      EXPECT_LT(static_cast<double>(sent), whole * (2 * 512 + 4 * gathers) + 1e9);
    }
    const MemoryPlan memory = plan_memory(run, {16384, 3}, int64_t{1} << 40);
    EXPECT_GT(memory.moments, 0);
    EXPECT_LT(memory.weights, int64_t{1} << 30);
  }
}

TEST(TrafficPlan, FrozenTensorsAreGatheredButNotReduced) {
  ShapeRun shape("8b");
  shape.mask.assign(shape.table.tensors().size(), false);
  for (size_t i = 0; i < shape.mask.size(); ++i) shape.mask[i] = shape.table.tensors()[i].segment > 30;
  const SegmentSizes sizes(shape.table, shape.mask, 4);
  const int64_t trained = std::accumulate(sizes.trained.begin(), sizes.trained.end(), int64_t{0});
  EXPECT_EQ(plan_traffic(shape.run(), {4, 1}).reduced, trained / 4 * 3 * 2);
  EXPECT_EQ(plan_traffic(shape.run(), {4, 1}).gathered_at_update, trained / 4 * 3 * 2);
  const double all = static_cast<double>(shape.table.parameter_count());
  EXPECT_NEAR(plan_traffic(shape.run(), {4, 3}).gathered_first / (all / 4 * 3 * 2), 1, 0.05);
}

TEST(StepEstimate, HidesWhatComputationCovers) {
  const ShapeRun shape("8b");
  const std::vector<Recording> keep(32, Recording::kKeep), again(32, Recording::kRecompute);
  const PlannedRun run = shape.run();
  const double flops = 4e14, wide = 1e15;
  const StepEstimate alone = estimate_step(run, {1, 0}, keep, {flops, wide});
  const double tokens = 2.0 * 4096;
  EXPECT_NEAR(alone.step / (tokens * training_flops_per_token(shape.config, shape.table, {}, 4096) / flops),
              1, 1e-9);
  EXPECT_EQ(alone.sending, 0);
  EXPECT_EQ(alone.hidden_fraction(), 1);
  EXPECT_NEAR(estimate_step(run, {1, 0}, again, {flops, wide}).backward / alone.backward, 1.5, 0.05);

  for (const int64_t stage : {0, 1, 2, 3}) {
    // A fast link costs next to nothing, a slow one everything.
    EXPECT_NEAR(estimate_step(run, {8, stage}, keep, {flops, wide}).step / alone.step, 1, 0.001);
    const StepEstimate slow = estimate_step(run, {8, stage}, keep, {flops, 1e8});
    EXPECT_NEAR(slow.step, slow.sending + alone.step, alone.step);
    EXPECT_LT(slow.hidden_fraction(), 0.02);
    EXPECT_NEAR(slow.sending,
                (plan_traffic(run, {8, stage}).per_step() - plan_traffic(run, {8, stage}).exchanged) / 1e8,
                1e-6 * slow.sending);
  }
  // At NVLink's speed what is left to see is the last reduction and the gathering after the update.
  const StepEstimate near = estimate_step(run, {8, 1}, keep, {flops, 4.5e11});
  EXPECT_GT(near.hidden_fraction(), 0.4);
  EXPECT_LT(near.hidden_fraction(), 0.9);
  EXPECT_GT(estimate_step(run, {8, 3}, keep, {flops, 4.5e11}).hidden_fraction(), 0.8);
}

TEST(StepEstimate, EightBitProductsTakeHalfTheTime) {
  ShapeRun shape("8b");
  const std::vector<Recording> keep(32, Recording::kKeep);
  const Rates rates{4e14, 1};
  const double plain = estimate_step(shape.run(), {1, 0}, keep, rates).step;
  shape.settings.fp8 = true;
  PlannedRun run = shape.run();
  // Of 6 FLOPs for a weight and token, half the time; 4,096 tokens in each of two micro-steps.
  const double saved = 3.0 * static_cast<double>(fp8_parameters(shape.table)) * 2 * 4096 / rates.flops;
  EXPECT_NEAR(plain - estimate_step(run, {1, 0}, keep, rates).step, saved, 1e-6 * plain);
  EXPECT_GT(saved, 0.4 * plain);
  run.on_card = false;
  EXPECT_EQ(estimate_step(run, {1, 0}, keep, rates).step, plain) << "a CPU has none";
}

TEST(ZeroStage, AutoTakesTheLowestThatFits) {
  const ShapeRun shape("8b");
  const PlannedRun run = shape.run();
  std::vector<int64_t> needs;
  for (int64_t stage = 0; stage <= 3; ++stage) needs.push_back(plan_memory(run, {8, stage}, 0).total());
  EXPECT_TRUE(std::is_sorted(needs.rbegin(), needs.rend()));
  for (int64_t stage = 0; stage <= 3; ++stage) {
    const StageChoice choice = choose_zero_stage(run, 8, needs[stage]);
    EXPECT_EQ(choice.stage, stage);
    EXPECT_NE(choice.reason.find("zero_stage auto: " + std::to_string(stage)), std::string::npos)
        << choice.reason;
    if (stage > 0) {
      EXPECT_NE(choice.reason.find("stage " + std::to_string(stage - 1) + " would need"), std::string::npos);
    }
  }
  EXPECT_NE(choose_zero_stage(run, 8, needs[3] - 1).reason.find("will not fit"), std::string::npos);
  EXPECT_EQ(choose_zero_stage(run, 1, 0).stage, 0);
  ShapeRun fixed("8b");
  fixed.settings.zero_stage = 2;
  EXPECT_EQ(choose_zero_stage(fixed.run(), 8, int64_t{1} << 50).stage, 2);
}

TEST(MemoryPlan, PinnedPiecesArePowersOfTwo) {
  const ModelConfig config = small_config(2, false);  // of the embedding, 6.4e6 elements
  const TensorTable table(config);
  Settings settings;
  settings.optimizer_offload = OptimizerOffload::kCpu;
  const PlannedRun run{settings, config, table, {}, 256, true};
  const MemoryPlan plan = plan_memory(run, {}, 0);
  const int64_t state = 12 * table.parameter_count();
  EXPECT_NEAR(plan.host - state, 2 * ((int64_t{1} << 25) + (int64_t{1} << 24)), 0.01 * state);
}

TEST(MemoryPlan, StatesOfAShareAreCut) {
  ShapeRun shape("8b");
  const PlannedRun run = shape.run();
  const int64_t parameters = shape.table.parameter_count();
  const auto near = [&](int64_t bytes, double expected) {
    EXPECT_NEAR(bytes / (expected * parameters), 1, 0.02);
  };
  const MemoryPlan whole = plan_memory(run, {4, 0}, 0), cut = plan_memory(run, {4, 1}, 0);
  const MemoryPlan third = plan_memory(run, {4, 3}, 0);
  near(whole.master, 4);
  near(whole.moments, 8);
  near(whole.sums, 1);
  near(whole.gathered_sums, 4);
  near(cut.master, 1);
  near(cut.moments, 2);
  near(cut.weights, 2);
  near(third.weights, 0.5);
  EXPECT_EQ(cut.gathered_sums, 0);
  EXPECT_GT(third.gathered, 0);
  shape.settings.optimizer_offload = OptimizerOffload::kCpu;
  const MemoryPlan offloaded = plan_memory(shape.run(), {4, 3}, 0);
  // Two pieces of gradients and of bf16 weights are pinned.
  EXPECT_EQ(offloaded.host, third.master + third.moments + 2 * kHostPiece * (4 + 2));
  EXPECT_EQ(offloaded.master + offloaded.moments, 0);
  shape.settings.precision = Precision::kFp32;
  shape.settings.optimizer_offload = OptimizerOffload::kNone;
  EXPECT_EQ(plan_memory(shape.run(), {4, 3}, 0).master, 0);
}

// Narrow models once had tiles of kTileElements / inputs outputs planned, which the products cap.
TEST(MemoryPlan, TilesOfANarrowModelAreThoseOfItsProducts) {
  ModelConfig config = small_config(1, false);
  config.vocab_size = 6000;
  const auto working = [&](bool widened, int64_t gradient_element) {
    PassShape shape{config, 600};
    shape.element = 2;
    shape.gradient_element = gradient_element;
    shape.widened = widened;
    return pass_bytes(shape, {Recording::kKeep}).working;
  };
  // The head's is the largest: 4096 of its rows at a time, against all 600 tokens.
  EXPECT_EQ(working(true, 2) - working(false, 2), 4 * (600 * (4096 + 64) + 4096 * 64));
  EXPECT_EQ(working(true, 4) - working(true, 2), -4 * 4096 * 64);
}

// The card has one layer on its way, the host all but the last.
TEST(MemoryPlan, OffloadedActivationsAreOnTheHost) {
  ShapeRun shape("8b");
  shape.settings.max_length = 65536;  // shorter, what is summed for the embedding's gradient is the peak
  const int64_t stream = shape.settings.max_length * 4096 * 2;  // bytes of a layer's input in bf16
  shape.settings.gradient_checkpointing = Checkpointing::kOn;
  const MemoryPlan here = plan_memory(shape.run(), {}, 0);
  shape.settings.activation_offloading = true;
  const MemoryPlan there = plan_memory(shape.run(), {}, 0);
  EXPECT_EQ(here.activations, 32 * stream);
  EXPECT_EQ(there.activations, stream);  // the last layer's, while the loss is computed
  EXPECT_EQ(here.total() - there.total(), 30 * stream);
  EXPECT_EQ(there.host - here.host, 31 * stream);                // 512 MiB each, a power of two
  shape.settings.gradient_checkpointing = Checkpointing::kAuto;  // the least to move, however much fits
  EXPECT_EQ(plan_memory(shape.run(), {}, int64_t{1} << 50).host, there.host);

  shape.settings.gradient_checkpointing = Checkpointing::kSelective;
  const MemoryPlan more = plan_memory(shape.run(), {}, 0);
  // Input, attention's output and the stream behind it; q, k and v of 6,144 and gate and up of 28,672 columns
  // in the next powers of two. 1 / rms twice and 32 log-sum-exps of each token stay.
  EXPECT_EQ(more.host - here.host, 31 * (3 + 2 + 8) * stream);
  const int64_t stays = 32 * shape.settings.max_length * 4 * 34;
  EXPECT_EQ(more.activations, stays + stream / 4096 * (3 * 4096 + 6144 + 28672));

  PlannedRun on_cpu = shape.run();
  on_cpu.on_card = false;
  EXPECT_EQ(plan_memory(on_cpu, {}, 0).host, 0);
}

TEST(MemoryPlan, EightBitWeightsAreKeptBelowStageThree) {
  ShapeRun shape("8b");
  shape.settings.gradient_checkpointing = Checkpointing::kOff;
  const MemoryPlan plain = plan_memory(shape.run(), {2, 2}, 0);
  shape.settings.fp8 = true;
  const MemoryPlan kept = plan_memory(shape.run(), {2, 2}, 0), made = plan_memory(shape.run(), {2, 3}, 0);
  const int64_t projections =
      32 * (int64_t{4096} * (4096 + 2048) + int64_t{4096} * 4096 + int64_t{3} * 4096 * 14336);
  EXPECT_EQ(plain.weights8, 0);
  EXPECT_EQ(kept.weights8, 2 * projections);
  EXPECT_EQ(made.weights8, 0);
  // Both norms and SwiGLU are kept in a byte instead of two, attention's output in one more.
  const int64_t tokens = shape.settings.max_length;
  EXPECT_EQ(plain.activations - kept.activations, 32 * tokens * (2 * 4096 + 14336 - 4096));
}

TEST(MemoryPlan, EagerAttentionHoldsItsMatrices) {
  ShapeRun shape("8b");
  const int64_t flash = plan_memory(shape.run(), {}, 0).working;
  shape.settings.attn_implementation = AttnImplementation::kEager;
  const int64_t matrices = int64_t{6} * 32 * shape.settings.max_length * shape.settings.max_length * 4;
  const int64_t eager = plan_memory(shape.run(), {}, 0).working;
  EXPECT_GT(eager, matrices);
  EXPECT_LT(eager, matrices + flash + (int64_t{1} << 30));
  shape.settings.attn_implementation = AttnImplementation::kAuto;
  shape.settings.precision = Precision::kFp32;
  EXPECT_LT(plan_memory(shape.run(), {}, 0).working, matrices / 2);
}

TEST(MemoryPlan, OneProcessHasNoCommunicationBuffers) {
  const ShapeRun shape("8b");
  const MemoryPlan plan = plan_memory(shape.run(), {}, 0);
  EXPECT_EQ(plan.gathered + plan.sums + plan.gathered_sums, 0);
  EXPECT_GE(plan.gradients, 4 * shape.table.parameter_count());  // fp32: two micro-batches are added up
}

}  // namespace
}  // namespace satune::trainer_test
