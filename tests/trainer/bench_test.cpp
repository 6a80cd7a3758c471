// What `satune bench` counts with, against numbers worked out by hand.
#include <gtest/gtest.h>

#include <numeric>

#include "model/flops.h"
#include "model/step_trace.h"
#include "tests/model_configs.h"
#include "trainer/bench_decoding.h"
#include "trainer/bench_rows.h"
#include "trainer/synthetic_data.h"
#include "trainer/synthetic_weights.h"

namespace satune {
namespace {

using Path = std::vector<std::string>;

ModelConfig two_layers() {
  return model_configs::config_of(
      {.vocabulary = 50, .hidden = 8, .ffn = 12, .layers = 2, .heads = 2, .kv_heads = 1, .head_dim = 4});
}

WorkShape shape_of(const ModelConfig& config) {
  const std::vector<Recording> keep(static_cast<size_t>(config.num_hidden_layers), Recording::kKeep);
  return {config, 10, 5, 1, 2, 4, true, keep, 0, 0};
}

void expect_work(const PartWork& work, double flops, double bytes) {
  EXPECT_DOUBLE_EQ(work.flops, flops);
  EXPECT_DOUBLE_EQ(work.bytes, bytes);
}

// 10 tokens, hidden 8, ffn 12, q 8, k and v 4 each, bf16 activations, fp32 gradients.
TEST(BenchWork, IsWhatAPencilGives) {
  const ModelConfig config = two_layers();
  const WorkShape shape = shape_of(config);
  const auto forward = [&](const char* part) { return work_of(shape, {"step", "layer forward", part}); };
  const auto backward = [&](const char* part) { return work_of(shape, {"step", "layer backward", part}); };
  // Two layers, each a product of [10, 8] and [8, 16].
  expect_work(forward(part::kQkv), 2 * 2 * 10 * 8 * 16, 2 * (80 + 128 + 160) * 2);
  // And two products back; the weight's gradient is written in fp32.
  expect_work(backward(part::kQkv), 2 * 4 * 10 * 8 * 16, 2 * ((2 * 160 + 2 * 80 + 128) * 2 + 128 * 4));
  // Two norms a layer: read x, write y, the weight, rstd.
  expect_work(forward(part::kNorm), 0, 2 * 2 * (2 * 80 * 2 + 8 * 2 + 40));
  expect_work(forward(part::kRope), 0, 2 * 2 * 10 * 12 * 2);
  // Scores and weighted values over documents of 5 tokens: 2 products x 2 x 5 x 5 x 8 / 2, of 2 documents.
  expect_work(forward(part::kAttention), 2 * 2 * 2 * 5 * 5 * 8, 2 * (10 * (8 + 4 + 4 + 8) * 2 + 10 * 2 * 4));
  EXPECT_DOUBLE_EQ(backward(part::kAttention).flops, 2.5 * forward(part::kAttention).flops);
  expect_work(forward(part::kSwiglu), 0, 2 * (2 * 120 + 120) * 2);
  expect_work(forward(part::kDown), 2 * 2 * 10 * 12 * 8, 2 * (120 + 96 + 80 + 80) * 2);
  expect_work(work_of(shape, {"step", "embedding forward"}), 0, 2 * 80 * 2);
  expect_work(work_of(shape, {"step", "embedding backward"}), 0, 80 * 2 + 2 * 80 * 4 + 400 * 4);
  expect_work(work_of(shape, {"step", "head backward", part::kLoss}), 6 * 10 * 8 * 50,
              (2 * 80 + 400) * 2 + 400 * 4);
  expect_work(backward(part::kSpan), 0, 0);
  expect_work(work_of(shape, {"step", "layer backward", part::kAgain, part::kQkv}), 0, 0);
  expect_work(work_of(shape, {"step", "upload of a micro-batch"}), 0, 0);
}

// 32 tokens, hidden 16, ffn 32, q, k and v 16 each: operands of one byte, made out of two.
TEST(BenchWork, OfProductsInEightBits) {
  const ModelConfig config = model_configs::config_of(
      {.vocabulary = 50, .hidden = 16, .ffn = 32, .layers = 1, .heads = 2, .kv_heads = 2, .head_dim = 8});
  WorkShape shape{config, 32, 32, 1, 2, 2, true, {Recording::kKeep}, 0, 0};
  shape.fp8 = true;
  const PartWork forward = work_of(shape, {"step", "layer forward", part::kQkv});
  expect_work(forward, 2 * 32 * 16 * 48, 32 * 16 * (2 + 2) + 32 * 16 + 16 * 48 + 32 * 48 * 2);
  EXPECT_DOUBLE_EQ(forward.flops8, forward.flops);
  const PartWork backward = work_of(shape, {"step", "layer backward", part::kQkv});
  expect_work(backward, 4 * 32 * 16 * 48,
              32 * 48 * (2 + 2) + 2 * 32 * 48 + 32 * 16 + 16 * 48 + 32 * 16 * 2 + 16 * 48 * 2);
  EXPECT_DOUBLE_EQ(backward.flops8, backward.flops);
  EXPECT_EQ(work_of(shape, {"step", "layer forward", part::kAttention}).flops8, 0);
  // Where the forward keeps nothing it writes rows alone; columns are made again or in the backward.
  const double input = 32 * 16;
  for (const Recording recording : {Recording::kRecompute, Recording::kSelective}) {
    const bool again = recording == Recording::kRecompute;
    shape.recording = {recording};
    EXPECT_EQ(work_of(shape, {"step", "layer forward", part::kQkv}).bytes, forward.bytes - input);
    EXPECT_EQ(work_of(shape, {"step", "layer backward", part::kAgain, part::kQkv}).bytes,
              again ? forward.bytes : 0);
    EXPECT_EQ(work_of(shape, {"step", "layer backward", part::kQkv}).bytes,
              backward.bytes + (again ? 0 : input * (2 + 1)));
  }
  // What is added is written beside the sum first: three times more in two bytes.
  const Path down = {"step", "layer backward", part::kDown};
  const double once = work_of(shape, down).bytes;
  shape.micro_steps = 2;
  EXPECT_EQ(work_of(shape, down).bytes, 2 * once + 3 * 2 * 32 * 16);
  EXPECT_EQ(work_of(shape, {"step", "head backward", part::kLoss}).flops8, 0);
  // Sizes that are no multiple of 16 stay in 16 bits.
  const ModelConfig odd = two_layers();
  WorkShape other = shape_of(odd);
  other.fp8 = true;
  EXPECT_EQ(work_of(other, {"step", "layer forward", part::kDown}).flops8, 0);
}

TEST(BenchWork, LaterMicroBatchesAddToGradients) {
  const ModelConfig config = two_layers();
  WorkShape once = shape_of(config), twice = shape_of(config);
  twice.micro_steps = 2;
  const Path down = {"step", "layer backward", part::kDown};
  EXPECT_DOUBLE_EQ(work_of(twice, down).bytes, 2 * work_of(once, down).bytes + 2 * 96 * 4);
  twice.accumulates = false;
  EXPECT_DOUBLE_EQ(work_of(twice, down).bytes, 2 * work_of(once, down).bytes);
  twice.update_bytes = 7;
  EXPECT_DOUBLE_EQ(work_of(twice, {"step", "optimizer"}).bytes, 7);
}

TEST(BenchWork, PoliciesComputeAgainWhatTheySay) {
  const ModelConfig config = two_layers();
  WorkShape shape = shape_of(config);
  shape.recording = {Recording::kRecompute, Recording::kSelective};
  const auto again = [&](const char* part) {
    return work_of(shape, {"step", "layer backward", part::kAgain, part});
  };
  const auto first = [&](const char* part) { return work_of(shape, {"step", "layer forward", part}); };
  EXPECT_DOUBLE_EQ(again(part::kSwiglu).bytes, first(part::kSwiglu).bytes);
  EXPECT_DOUBLE_EQ(again(part::kGateUp).flops, first(part::kGateUp).flops / 2);
  EXPECT_DOUBLE_EQ(again(part::kDown).flops, 0);
}

/// The FLOPs of every product of weights.
double flops_of_products(const WorkShape& shape) {
  double flops = work_of(shape, {"step", "head backward", part::kLoss}).flops;
  for (const char* pass : {"layer forward", "layer backward"}) {
    for (const char* part : {part::kQkv, part::kOutput, part::kGateUp, part::kDown})
      flops += work_of(shape, {"step", pass, part}).flops;
  }
  return flops;
}

TEST(BenchWork, ProductsAreThoseOfTheModelsFlops) {
  ModelConfig config = model_configs::llama3("8b");
  for (const char* layers : {"", "23-26"}) {
    if (*layers != '\0') config.sharing = SharingPlan::parse(layers, AnchorRule::kBefore, 32);
    WorkShape shape = shape_of(config);
    shape.micro_steps = 3;
    const double model = training_flops_per_token(config, TensorTable(config), {}, 0);
    EXPECT_DOUBLE_EQ(flops_of_products(shape) / (3 * 10), model) << layers;
  }
}

TEST(BenchWork, SpansSumInFp32) {
  ModelConfig config = model_configs::config_of(
      {.vocabulary = 50, .hidden = 8, .ffn = 12, .layers = 4, .heads = 2, .kv_heads = 1, .head_dim = 4});
  config.sharing = SharingPlan::parse("2-3", AnchorRule::kBefore, 4);
  const WorkShape shape = shape_of(config);
  // 10 x 12 numbers of q and k. Layer 3 writes the sums, layer 2 adds to them, anchor 1 adds and rounds.
  EXPECT_DOUBLE_EQ(work_of(shape, {"step", "layer backward", part::kSpan}).bytes,
                   120 * (2 + 4) + 120 * (2 + 8) + 120 * (2 + 8 + 4 + 2));
  EXPECT_DOUBLE_EQ(work_of(shape, {"step", "layer forward", part::kRope}).bytes, 2 * 2 * 10 * 12 * 2);
  EXPECT_DOUBLE_EQ(work_of(shape, {"step", "layer forward", part::kQkv}).flops,
                   2 * 10 * 8 * (16 + 16 + 4 + 4));
}

TEST(BenchRows, AddUpToTheStepAndStandBesideTheHigherFloor) {
  const ModelConfig config = two_layers();
  StepRecorder recorder(at::kCPU);
  for (int step = 0; step < 2; ++step) {
    const TracedPart whole(&recorder, "step {}", step);
    for (int layer = 0; layer < 2; ++layer) {
      const TracedPart pass(&recorder, "layer {} backward", layer);
      const TracedPart again(&recorder, part::kAgain);
      const TracedPart norm(&recorder, part::kNorm);
    }
    const TracedPart pass(&recorder, "embedding forward");
  }
  const StepRecorder::Recorded recorded = recorder.take();
  double whole = 0, rows_ms = 0, shares = 0;
  for (const RecordedPart& part : recorded.parts) whole += part.depth == 0 ? part.device.length() / 2000 : 0;
  WorkShape shape = shape_of(config);
  shape.recording.assign(2, Recording::kRecompute);
  const std::vector<BenchRow> rows = bench_rows(recorded, shape, {1e9, 1e6});
  for (const BenchRow& row : rows) {
    rows_ms += row.milliseconds;
    shares += row.share;
  }
  EXPECT_NEAR(rows_ms, whole, 1e-9 * whole);
  EXPECT_NEAR(shares, 1, 1e-9);
  const auto norm =
      std::find_if(rows.begin(), rows.end(), [](const BenchRow& row) { return row.part == "norm"; });
  ASSERT_NE(norm, rows.end());
  EXPECT_EQ(norm->segment + " " + norm->pass, "layers again");
  EXPECT_DOUBLE_EQ(norm->calls, 2);
  EXPECT_DOUBLE_EQ(norm->floor_milliseconds, norm->work.bytes / 1e6 * 1000);
  EXPECT_EQ(rows.back().segment + " " + rows.back().part, "step rest");
  EXPECT_EQ(rows_json(rows).back().at("ratio"), nullptr);
}

TEST(Floors, TheHigherOneCounts) {
  const Floors floors{100, 10};
  EXPECT_DOUBLE_EQ(floors.seconds(200, 5), 2);
  EXPECT_DOUBLE_EQ(floors.seconds(200, 50), 5);
  EXPECT_DOUBLE_EQ(floors.seconds(0, 0), 0);
  // Products of 8 bits at their own rate, where it is known.
  EXPECT_DOUBLE_EQ(floors.seconds(200, 5, 100), 2);
  EXPECT_DOUBLE_EQ((Floors{100, 10, 400}).seconds(200, 5, 100), 1.25);
  EXPECT_DOUBLE_EQ(better_of({1, 5, 7}, {2, 4, 6}).gemm8_flops, 7);
  EXPECT_DOUBLE_EQ(better_of({1, 5}, {2, 4}).gemm_flops, 2);
  EXPECT_DOUBLE_EQ(better_of({1, 5}, {2, 4}).copy_bytes, 5);
}

TEST(SyntheticRows, AreFullAndAlike) {
  BatchSource source = synthetic_rows({.rows = 6, .row_length = 12, .document_length = 4, .vocab_size = 9});
  EXPECT_EQ(source.rows(0), 6);
  EXPECT_EQ(source.token_count(0, 0, 6), 72);
  EXPECT_EQ(source.target_count(0, 0, 6), 6 * 3 * 3);
  const Batch batch = source.make_batch(0, 2, 2);
  ASSERT_EQ(batch.tokens.size(), 24U);
  EXPECT_EQ(batch.document_starts, (std::vector<int32_t>{0, 4, 8, 12, 16, 20, 24}));
  for (const int32_t token : batch.tokens) EXPECT_TRUE(token >= 0 && token < 9) << token;
  EXPECT_EQ(batch.tokens, synthetic_rows({.rows = 6, .row_length = 12, .document_length = 4, .vocab_size = 9})
                              .make_batch(0, 2, 2)
                              .tokens);
}

TEST(BenchDecoding, CachesAreThoseOfTheModelAndMemoryEndsIt) {
  const ModelConfig config = model_configs::config_of(
      {.vocabulary = 50, .hidden = 16, .ffn = 24, .layers = 4, .heads = 2, .kv_heads = 1, .head_dim = 8});
  Llama dense(config, {}, at::kFloat, at::kCPU);
  fill_synthetic(dense.weights(), 0.02);
  const Llama shared = dense.with_sharing(SharingPlan::parse("2-3", AnchorRule::kBefore, 4));
  const DecodeLength length{.prompt = 3, .tokens = 2, .max_batch = 4};
  // 4 layers of keys and values of 8 numbers, fp32, 5 tokens: 1,280 bytes a sequence.
  const DecodeSeries series = time_decoding({&dense, &shared}, length, 3000);
  ASSERT_EQ(series.by_model.size(), 2U);
  ASSERT_EQ(series.by_model[0].size(), 2U);  // four sequences would need 5,120
  EXPECT_EQ(series.ended_by.substr(0, 6), "memory");
  EXPECT_EQ(series.by_model[0][1].batch, 2);
  EXPECT_EQ(series.by_model[0][1].cache_bytes, 2 * 1280);
  EXPECT_EQ(series.by_model[1][1].cache_bytes, 2 * 960);
  EXPECT_EQ(series.by_model[1][1].dense_cache_bytes, 2 * 1280);
  EXPECT_GT(series.by_model[1][1].step_seconds, 0);
  EXPECT_EQ(time_decoding({&dense}, length, 1 << 20).ended_by, "--max-batch");
}

}  // namespace
}  // namespace satune
