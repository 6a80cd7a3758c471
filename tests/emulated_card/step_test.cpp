// Training steps on the emulated card: how often the host waits, what is allocated and when, against the
// promises of trainer/step.cpp and the memory plan.
#include "trainer/step.h"

#include <ATen/ATen.h>
#include <ATen/DeviceAccelerator.h>
#include <gtest/gtest.h>

#include "tests/emulated_card/card.h"
#include "tests/model_configs.h"
#include "trainer/attention_choice.h"
#include "trainer/compute_types.h"
#include "trainer/coordinator.h"
#include "trainer/device.h"
#include "trainer/memory_plan.h"
#include "trainer/model_modes.h"
#include "trainer/synthetic_data.h"
#include "trainer/synthetic_weights.h"

namespace satune::trainer_test {
namespace {

const at::Device kEmulated = choose_device(DeviceChoice::kCuda, 0);

struct Case {
  const char* name;
  std::vector<std::string> settings = {};
  const char* shared = "";
  int64_t document_length = 0;  ///< 0: the row
  int64_t waits = 1;            ///< of the host, a step
  int ffn = 224, kv_heads = 2;
  double less = 0.02, more = 0.02;  ///< than is planned beside weights and state, as a share of it
};

Settings settings_of(const Case& tried) {
  std::vector<std::string> overrides = {"model_name_or_path=.", "output_dir=unused",
                                        "train_file=unused",    "per_device_train_batch_size=1",
                                        "precision=bf16",       "max_length=96"};
  overrides.insert(overrides.end(), tried.settings.begin(), tried.settings.end());
  return parse_settings("{}", "step_test", overrides);
}

ModelConfig config_of(const Case& tried) {
  ModelConfig config = model_configs::config_of({.vocabulary = 512,
                                                 .hidden = 64,
                                                 .ffn = tried.ffn,
                                                 .layers = 5,
                                                 .heads = 4,
                                                 .kv_heads = tried.kv_heads,
                                                 .head_dim = 16});
  if (*tried.shared != 0) config.sharing = SharingPlan::parse(tried.shared, AnchorRule::kBefore, 5);
  return config;
}

int64_t requested(bool peak) {
  const auto stats = at::accelerator::getDeviceStats(kEmulated.index())
                         .requested_bytes[static_cast<size_t>(at::CachingAllocator::StatType::AGGREGATE)];
  return peak ? stats.peak : stats.current;
}

/// A model on the card with everything that its steps need.
class SteppedModel {
 public:
  explicit SteppedModel(const Case& tried)
      : settings_(settings_of(tried)),
        config_(config_of(tried)),
        before_(requested(false)),
        rows_(settings_.per_device_train_batch_size * settings_.gradient_accumulation_steps),
        model_(config_, {}, weight_type(settings_.precision), kEmulated),
        data_(synthetic_rows(
            {.rows = rows_,
             .row_length = settings_.max_length,
             .document_length = tried.document_length > 0 ? tried.document_length : settings_.max_length,
             .vocab_size = config_.vocab_size})),
        sharding_(model_, groups_, *coordinator_, 0, gradient_type(settings_, {})) {
    fill_synthetic(model_.weights(), 0.02);
    model_.attend_by(
        choose_attention(wanted_attention(settings_), config_, model_.weights().type(), kEmulated).choice);
    use_fp8(model_, settings_, 0);
    offload_activations(model_, settings_);
    optimizer_.emplace(
        model_.weights().trained, sharding_.weight_shards(), AdamWOptions(settings_),
        sharding_.optimizer_owner(),
        settings_.optimizer_offload == OptimizerOffload::kCpu ? at::Device(at::kCPU) : kEmulated);
    documents_ =
        settings_.max_length / (tried.document_length > 0 ? tried.document_length : settings_.max_length);
    plan_ = plan_with(settings_.gradient_checkpointing, available());
    step_.emplace(model_, sharding_, *optimizer_, groups_, *coordinator_, data_, settings_, plan_.recording);
  }

  StepResult step() { return step_->run({0, 0, rows_}, 1e-3, ++updates_); }
  const MemoryPlan& plan() const { return plan_; }
  /// Of "auto", which is to fill it: half-way between all that it can choose.
  int64_t available() const {
    constexpr int64_t kMuch = int64_t{1} << 40;
    if (settings_.gradient_checkpointing != Checkpointing::kAuto) return kMuch;
    return (plan_with(Checkpointing::kOff, kMuch).total() + plan_with(Checkpointing::kOn, kMuch).total()) / 2;
  }
  /// Bytes that were there before the model, which tests before left to the process.
  int64_t before() const { return before_; }

 private:
  MemoryPlan plan_with(Checkpointing policy, int64_t available) const {
    Settings settings = settings_;
    settings.gradient_checkpointing = policy;
    const std::vector<bool> all_trained(model_.table().tensors().size(), true);
    PlannedRun planned{settings,        config_, model_.table(), all_trained, settings.max_length,
                       /*on_card=*/true};
    planned.documents = documents_;
    return plan_memory(planned, {1, 0, 1}, available);
  }

  Settings settings_;
  ModelConfig config_;
  int64_t before_, rows_, updates_ = 0;
  int64_t documents_ = 1;
  Llama model_;
  std::unique_ptr<ProcessGroup> group_ = make_local_group();
  ProcessGroups groups_{*group_, *group_, *group_};
  std::unique_ptr<Coordinator> coordinator_ = make_solo_coordinator([] { return std::string(); });
  BatchSource data_;
  Sharding sharding_;
  std::optional<AdamW> optimizer_;
  std::optional<TrainingStep> step_;
  MemoryPlan plan_;
};

class EmulatedModes : public ::testing::TestWithParam<Case> {};

TEST_P(EmulatedModes, WaitsOnceAndAllocatesNothingMore) {
  SteppedModel model(GetParam());
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(model.step().updated);
  const emulated_card::Counts before = emulated_card::counts();
  ASSERT_TRUE(model.step().updated);
  EXPECT_EQ(emulated_card::counts().waits - before.waits, GetParam().waits);
  EXPECT_EQ(emulated_card::counts().allocations, before.allocations);
}

/// Bytes that a step has at its worst beside those that stay: activations and working memory.
int64_t measured_beside_state(SteppedModel& model) {
  model.step();  // the workspace of cuBLAS and the table of rotations stay
  at::accelerator::resetPeakStats(kEmulated.index());
  const int64_t before = requested(false);
  model.step();
  return requested(true) - before;
}

/// Bytes of everything that stays, from the second step on.
int64_t measured_state(SteppedModel& model) {
  model.step();
  return requested(false) - model.before();
}

TEST_P(EmulatedModes, TakesThePlannedMemory) {
  { SteppedModel(GetParam()).step(); }
  SteppedModel model(GetParam());
  const MemoryPlan& plan = model.plan();
  // Weights in 8 bits are made in the step and gone after the update.
  const int64_t beside = plan.activations + plan.working + plan.weights8;
  const int64_t state = plan.total() - beside - plan.libraries;
  EXPECT_NEAR(static_cast<double>(measured_state(model)) / static_cast<double>(state), 1, 0.02);
  const double ratio = static_cast<double>(measured_beside_state(model)) / static_cast<double>(beside);
  EXPECT_GT(ratio, 1 - GetParam().less);
  EXPECT_LT(ratio, 1 + GetParam().more);
}

TEST(EmulatedStep, AutomaticCheckpointingFillsTheCardAndStaysWithin) {
  const Case tried{"Auto", {"gradient_checkpointing=auto"}, "2-4"};
  { SteppedModel(tried).step(); }
  SteppedModel model(tried);
  const std::vector<Recording>& chosen = model.plan().recording;
  EXPECT_NE(chosen.front(), chosen.back()) << "some layers keep more than others";
  // Beside what stays whatever is chosen.
  const MemoryPlan& plan = model.plan();
  const int64_t stays = plan.total() - plan.activations - plan.working;
  const auto room = static_cast<double>(model.available() - stays),
             taken = static_cast<double>(measured_beside_state(model));
  EXPECT_LT(taken, 1.01 * room);
  EXPECT_GT(taken, 0.7 * room) << "one layer more would not have fitted";
}

INSTANTIATE_TEST_SUITE_P(
    Steps, EmulatedModes,
    ::testing::Values(
        Case{"Recomputed"}, Case{"Selective", {"gradient_checkpointing=selective"}},
        Case{"Kept", {"gradient_checkpointing=false"}},
        Case{"Shared", {"gradient_checkpointing=false"}, "2-4"},
        Case{"Packed", {"gradient_checkpointing=false"}, "2-4", 32},
        Case{"PackedAsReady",
             {"gradient_checkpointing=false", "deterministic=false", "attn_implementation=flash"},
             "2-4",
             32,
             1,
             224,
             2,
             0.03},
        Case{"Accumulated", {"gradient_accumulation_steps=2"}},
        Case{"Fp32", {"precision=fp32", "gradient_checkpointing=false"}}, Case{"Fp16", {"precision=fp16"}},
        Case{"EightBit", {"fp8=true", "gradient_checkpointing=false"}},
        Case{"EightBitSelective", {"fp8=true", "gradient_checkpointing=selective"}},
        Case{"EightBitRecomputed", {"fp8=true"}},
        Case{"EightBitAccumulated", {"fp8=true", "gradient_accumulation_steps=2"}},
        // Where MLPs are so narrow that attention's backward has the most.
        Case{"Flash", {"attn_implementation=flash"}, "", 0, 1, 16},
        Case{"FlashAsReady", {"attn_implementation=flash", "deterministic=false"}, "", 0, 1, 16},
        Case{"FlashOfASpan", {"attn_implementation=flash"}, "2-4", 0, 1, 16, 2, 0.03},
        Case{"FlashOfAllHeads", {"attn_implementation=flash"}, "", 0, 1, 16, 4},
        Case{"FlashOfFp32", {"precision=fp32"}, "", 0, 1, 16},
        Case{"FlashOfFp32Packed", {"precision=fp32"}, "", 32, 1, 16},
        Case{"Cudnn", {"deterministic=false"}, "", 0, 1, 16},
        Case{"CudnnPacked", {"deterministic=false"}, "", 32, 1, 16},
        // Planned with rows of d_q as those of a fused projection: a shared layer's are apart.
        Case{"CudnnOfASpan", {"deterministic=false"}, "2-4", 32, 1, 16, 2, 0.05},
        // Takes so little that the norm's scratch, which the plan leaves out, shows in a model as small as
        // this.
        Case{"CudnnOfAllHeads", {"deterministic=false"}, "", 0, 1, 16, 4, 0.02, 0.07},
        Case{"CudnnBeforeFlash", {"attn_implementation=cudnn"}, "", 0, 1, 16},
        Case{"CudnnBeforeFlashPacked", {"attn_implementation=cudnn"}, "", 32, 1, 16},
        Case{"Offloaded", {"gradient_checkpointing=false", "activation_offloading=true"}},
        // For the scale, each of seven gradients, and memory of five of the weights that left before.
        Case{"OptimizerOnTheHost", {"optimizer_offload=cpu"}, "", 0, 13},
        Case{"SmallState", {"master_weights=none", "optimizer_moments=8bit"}},
        Case{"Split", {"master_weights=split", "optimizer_moments=bf16"}}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace satune::trainer_test
