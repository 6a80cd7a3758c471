// The one list of settings. A field that is not here does not exist; a field that is here is parsed, checked,
// printed, saved and compared on a resume.
#include <fmt/format.h>

#include "trainer/settings_field.h"

namespace satune {

ChoiceNames<AnchorRule> choice_names(AnchorRule) {
  return {{AnchorRule::kBefore, "before"}, {AnchorRule::kFirst, "first"}};
}
ChoiceNames<Overlength> choice_names(Overlength) {
  return {{Overlength::kDrop, "drop"}, {Overlength::kTruncate, "truncate"}, {Overlength::kError, "error"}};
}
ChoiceNames<Precision> choice_names(Precision) {
  return {{Precision::kFp32, "fp32"}, {Precision::kBf16, "bf16"}, {Precision::kFp16, "fp16"}};
}
ChoiceNames<SchedulerType> choice_names(SchedulerType) {
  return {{SchedulerType::kCosine, "cosine"},
          {SchedulerType::kLinear, "linear"},
          {SchedulerType::kConstant, "constant"}};
}
ChoiceNames<WarmupType> choice_names(WarmupType) {
  return {{WarmupType::kLinear, "linear"}, {WarmupType::kLog, "log"}};
}
ChoiceNames<Checkpointing> choice_names(Checkpointing) {
  return {{Checkpointing::kOn, "true"},
          {Checkpointing::kOff, "false"},
          {Checkpointing::kSelective, "selective"},
          {Checkpointing::kAuto, "auto"}};
}
ChoiceNames<NonFinitePolicy> choice_names(NonFinitePolicy) {
  return {{NonFinitePolicy::kStop, "stop"}, {NonFinitePolicy::kSkip, "skip"}};
}
ChoiceNames<DeviceChoice> choice_names(DeviceChoice) {
  return {{DeviceChoice::kAuto, "auto"}, {DeviceChoice::kCpu, "cpu"}, {DeviceChoice::kCuda, "cuda"}};
}
ChoiceNames<ExportDtype> choice_names(ExportDtype) {
  return {{ExportDtype::kAuto, "auto"},
          {ExportDtype::kFloat32, "float32"},
          {ExportDtype::kBfloat16, "bfloat16"},
          {ExportDtype::kFloat16, "float16"}};
}
ChoiceNames<OptimizerOffload> choice_names(OptimizerOffload) {
  return {{OptimizerOffload::kNone, "none"}, {OptimizerOffload::kCpu, "cpu"}};
}
ChoiceNames<MasterWeights> choice_names(MasterWeights) {
  return {{MasterWeights::kFp32, "fp32"}, {MasterWeights::kSplit, "split"}, {MasterWeights::kNone, "none"}};
}
ChoiceNames<OptimizerMoments> choice_names(OptimizerMoments) {
  return {{OptimizerMoments::kFp32, "fp32"},
          {OptimizerMoments::kBf16, "bf16"},
          {OptimizerMoments::k8Bit, "8bit"}};
}
ChoiceNames<AttnImplementation> choice_names(AttnImplementation) {
  return {{AttnImplementation::kAuto, "auto"},
          {AttnImplementation::kCudnn, "cudnn"},
          {AttnImplementation::kFlash, "flash"},
          {AttnImplementation::kEager, "eager"}};
}

namespace {

// Whether a resume with another value would continue another run.
constexpr bool kTrajectory = true;
constexpr bool kFree = false;

#define SATUNE_MEMBER(name)     \
  [](auto& settings) -> auto& { \
    return settings.name;       \
  }

std::vector<Field> model_fields() {
  std::vector<Field> fields;
  fields.push_back(make_field("model_name_or_path", SATUNE_MEMBER(model_name_or_path),
                              "Hugging Face directory of the model, or a hub id that is in the local cache",
                              kTrajectory));
  fields.back().required = true;
  fields.back().section = "Model";
  fields.push_back(make_field("output_dir", SATUNE_MEMBER(output_dir), "the run folder", kFree));
  fields.back().required = true;
  fields.push_back(make_field("sharing.layers", SATUNE_MEMBER(sharing_layers),
                              "layers that reuse attention weights, 0-based and inclusive: \"23-26\" or "
                              "\"10-12,23-26\"; \"\" keeps what the checkpoint has",
                              kTrajectory));
  fields.push_back(make_field("sharing.anchor", SATUNE_MEMBER(sharing_anchor),
                              "\"before\": all listed layers reuse those of the layer before the run; "
                              "\"first\": the first of each run computes",
                              kTrajectory));
  fields.push_back(make_field("unfrozen_parameters", SATUNE_MEMBER(unfrozen_parameters),
                              "patterns matched from the start of tensor names; only these train; [] = all",
                              kTrajectory));
  return fields;
}

std::vector<Field> data_fields() {
  std::vector<Field> fields;
  fields.push_back(make_field("train_file", SATUNE_MEMBER(train_file),
                              "Alpaca JSON or JSONL, or plain text (.txt, or JSONL with \"text\")", kFree));
  fields.back().required = true;
  fields.back().section = "Data";
  fields.push_back(make_field("eval_file", SATUNE_MEMBER(eval_file),
                              "records to evaluate on, instead of val_size", kFree));
  fields.push_back(
      make_field("val_size", SATUNE_MEMBER(val_size),
                 "share of the records held out for evaluation, or their number if >= 1; 0 = none",
                 kTrajectory, kNotNegative));
  fields.push_back(make_field("template", SATUNE_MEMBER(prompt_template),
                              "\"alpaca\", \"alpaca_stanford\", \"llama3\", or a JSON file", kTrajectory));
  fields.push_back(make_field("columns.instruction", SATUNE_MEMBER(columns.instruction),
                              "the key of a record that holds the instruction", kTrajectory));
  fields.push_back(
      make_field("columns.input", SATUNE_MEMBER(columns.input), "its input; may be missing", kTrajectory));
  fields.push_back(make_field("columns.output", SATUNE_MEMBER(columns.output), "its response", kTrajectory));
  fields.push_back(
      make_field("columns.text", SATUNE_MEMBER(columns.text), "plain text records: the text", kTrajectory));
  fields.push_back(make_field("max_length", SATUNE_MEMBER(max_length),
                              "tokens of a row, and the most a sample may have", kTrajectory, {.min = 2}));
  fields.push_back(
      make_field("overlength", SATUNE_MEMBER(overlength), "what happens to a longer sample", kTrajectory));
  fields.push_back(make_field("packing", SATUNE_MEMBER(packing),
                              "several samples in a row (attention never crosses them); false = one a row",
                              kTrajectory));
  fields.push_back(make_field("shuffle", SATUNE_MEMBER(shuffle), "another order every epoch", kTrajectory));
  fields.push_back(
      make_field("token_cache_dir", SATUNE_MEMBER(token_cache_dir),
                 "where tokenised data is kept between runs; null = ~/.cache/satune, \"\" = nowhere", kFree));
  return fields;
}

/// Every epoch is packed anew, so that its steps are known: more take minutes to plan.
constexpr double kMostEpochs = 10000;

std::vector<Field> length_fields() {
  std::vector<Field> fields;
  fields.push_back(make_field("num_train_epochs", SATUNE_MEMBER(num_train_epochs),
                              "passes over the data (or give max_steps)", kTrajectory,
                              {.min = 0, .max = kMostEpochs, .above_min = true}));
  fields.back().section = "Length of the run and batch";
  fields.push_back(make_field("max_steps", SATUNE_MEMBER(max_steps),
                              "optimizer steps, instead of num_train_epochs", kTrajectory, kAtLeastOne));
  fields.push_back(make_field("per_device_train_batch_size", SATUNE_MEMBER(per_device_train_batch_size),
                              "rows of a micro-batch of one process", kFree, kAtLeastOne));
  fields.push_back(make_field("gradient_accumulation_steps", SATUNE_MEMBER(gradient_accumulation_steps),
                              "micro-batches of a step", kFree, kAtLeastOne));
  return fields;
}

std::vector<Field> optimizer_fields() {
  std::vector<Field> fields;
  fields.push_back(make_field("learning_rate", SATUNE_MEMBER(learning_rate), "peak of the schedule",
                              kTrajectory, kPositive));
  fields.back().section = "Optimizer (AdamW, no decay on norms) and schedule";
  fields.push_back(make_field("lr_scheduler_type", SATUNE_MEMBER(lr_scheduler_type),
                              "shape after the warm-up", kTrajectory));
  fields.push_back(make_field("warmup_ratio", SATUNE_MEMBER(warmup_ratio),
                              "share of the steps that warm up (or give warmup_steps)", kTrajectory,
                              kShareBelowOne));
  fields.push_back(make_field("warmup_steps", SATUNE_MEMBER(warmup_steps),
                              "steps of warm-up, instead of warmup_ratio; below 1 it is a share", kTrajectory,
                              kNotNegative));
  fields.push_back(make_field("lr_warmup_type", SATUNE_MEMBER(lr_warmup_type),
                              "\"linear\", or \"log\": equal factors from warmup_start_ratio to the peak",
                              kTrajectory));
  fields.push_back(make_field("warmup_start_ratio", SATUNE_MEMBER(warmup_start_ratio),
                              "share of the peak at which the warm-up starts; \"log\" needs more than 0",
                              kTrajectory, kShareBelowOne));
  fields.push_back(make_field("min_lr_ratio", SATUNE_MEMBER(min_lr_ratio),
                              "share of the peak at which cosine and linear end", kTrajectory, kShare));
  fields.push_back(make_field("weight_decay", SATUNE_MEMBER(weight_decay), "decoupled, as in AdamW",
                              kTrajectory, kNotNegative));
  fields.push_back(make_field("adam_beta1", SATUNE_MEMBER(adam_beta1), "decay of the first moment",
                              kTrajectory, kShareBelowOne));
  fields.push_back(make_field("adam_beta2", SATUNE_MEMBER(adam_beta2), "decay of the second moment",
                              kTrajectory, kShareBelowOne));
  fields.push_back(make_field("adam_epsilon", SATUNE_MEMBER(adam_epsilon),
                              "added to the root of the second moment", kTrajectory, kNotNegative));
  fields.push_back(make_field("max_grad_norm", SATUNE_MEMBER(max_grad_norm),
                              "gradients are scaled down to this global norm; 0 = never", kTrajectory,
                              kNotNegative));
  return fields;
}

std::vector<Field> machine_fields() {
  std::vector<Field> fields;
  fields.push_back(
      make_field("device", SATUNE_MEMBER(device), "\"auto\" takes a card when there is one", kFree));
  fields.back().section = "Machine";
  fields.push_back(make_field("num_threads", SATUNE_MEMBER(num_threads),
                              "CPU threads; \"auto\" = every core allowed", kFree,
                              {.min = 1, .unset_word = "auto"}));
  fields.push_back(make_field("precision", SATUNE_MEMBER(precision),
                              "of the computation; master_weights and optimizer_moments say what the "
                              "optimizer keeps",
                              kTrajectory));
  fields.push_back(
      make_field("fp8", SATUNE_MEMBER(fp8),
                 "the layers' projections of a bf16 run are products of 8-bit floats (e4m3, gradients "
                 "e5m2), scaled by each matrix's largest magnitude; tried out at the start; on cards of "
                 "compute capability 8.9 and newer",
                 kTrajectory));
  fields.push_back(
      make_field("attn_implementation", SATUNE_MEMBER(attn_implementation),
                 "the attention kernel, tried out at the start; \"auto\": on a card the first of cudnn "
                 "and flash that agrees with eager, which holds S x S matrices and is for checks",
                 kTrajectory));
  fields.push_back(
      make_field("deterministic", SATUNE_MEMBER(deterministic),
                 "a run on a card gives the same bits again, as one on the CPU always does; false: "
                 "attention's backward, then cudnn's own, adds gradients of queries as they are "
                 "ready, which is faster, most of all on long documents",
                 kTrajectory));
  fields.push_back(
      make_field("gradient_checkpointing", SATUNE_MEMBER(gradient_checkpointing),
                 "compute layers again in the backward pass: all, none, norms and SwiGLU only, or "
                 "what memory asks for; the numbers are bitwise the same",
                 kFree));
  fields.push_back(make_field("activation_offloading", SATUNE_MEMBER(activation_offloading),
                              "what layers of a model on a card keep for the backward pass waits for it in "
                              "pinned host memory (but for an anchor's Q and K, and what is small); with "
                              "gradient_checkpointing \"auto\" that is each "
                              "layer's input alone",
                              kFree));
  fields.push_back(
      make_field("zero_stage", SATUNE_MEMBER(zero_stage),
                 "what is cut over the processes: 1 optimizer, 2 and gradients, 3 and weights; one "
                 "process holds all in every stage",
                 kFree, {.min = 0, .max = 3, .unset_word = "auto"}));
  fields.push_back(make_field("shard_group_size", SATUNE_MEMBER(shard_group_size),
                              "neighbouring processes that zero_stage cuts one model over, replicated by the "
                              "other such groups; null = all processes",
                              kFree, kAtLeastOne));
  fields.push_back(make_field("optimizer_offload", SATUNE_MEMBER(optimizer_offload),
                              "where master weights and moments live and are updated: beside the model, or "
                              "\"cpu\" for a model on cards",
                              kFree));
  fields.push_back(
      make_field("master_weights", SATUNE_MEMBER(master_weights),
                 "of bf16 weights: an fp32 copy of their own; \"split\", the same numbers in half "
                 "the memory (16 bits beside each weight); \"none\", weights that are rounded "
                 "stochastically",
                 kTrajectory));
  fields.back().info.interchangeable = {"fp32", "split"};
  fields.push_back(make_field("optimizer_moments", SATUNE_MEMBER(optimizer_moments),
                              "how the moments of AdamW are kept; bf16 and 8bit are rounded stochastically, "
                              "8bit in blocks of 256",
                              kTrajectory));
  fields.push_back(
      make_field("ddp_timeout", SATUNE_MEMBER(ddp_timeout),
                 "seconds that a collective, and at the start the meeting of all processes, may "
                 "take before the run ends and names those it waited for; also one call on a file of "
                 "a save or an export, which ends a run whose disk does not answer",
                 kFree, kAtLeastOne));
  fields.push_back(make_field("heartbeat_timeout", SATUNE_MEMBER(heartbeat_timeout),
                              "seconds without a sign of life after which a process counts as lost", kFree,
                              kAtLeastOne));
  return fields;
}

std::vector<Field> run_fields() {
  std::vector<Field> fields;
  fields.push_back(
      make_field("seed", SATUNE_MEMBER(seed), "of the split and the order of the data", kTrajectory));
  fields.back().section = "The run";
  fields.push_back(make_field("logging_steps", SATUNE_MEMBER(logging_steps),
                              "steps between progress lines where there is no terminal", kFree, kAtLeastOne));
  fields.push_back(make_field("eval_steps", SATUNE_MEMBER(eval_steps),
                              "steps between evaluations; 0 = at the end only", kFree, kNotNegative));
  fields.push_back(make_field("eval_samples", SATUNE_MEMBER(eval_samples),
                              "held-out records that are answered (greedy, at most 128 tokens) at each "
                              "evaluation, in samples.jsonl; 0 = none. Several ranks wait for the answers a "
                              "quarter of ddp_timeout at most",
                              kFree, kNotNegative));
  fields.push_back(make_field("save_steps", SATUNE_MEMBER(save_steps),
                              "steps between snapshots; 0 = at the end only", kFree, kNotNegative));
  fields.push_back(make_field("save_minutes", SATUNE_MEMBER(save_minutes),
                              "minutes between snapshots, besides save_steps; 0 = never by the clock", kFree,
                              kNotNegative));
  fields.push_back(make_field("save_total_limit", SATUNE_MEMBER(save_total_limit), "newest snapshots kept",
                              kFree, kAtLeastOne));
  fields.push_back(make_field("keep_best", SATUNE_MEMBER(keep_best),
                              "the snapshot of the lowest eval_loss is kept besides", kFree));
  fields.push_back(make_field("patience", SATUNE_MEMBER(patience),
                              "evaluations without a lower eval_loss after which the run ends; null = none",
                              kFree, kAtLeastOne));
  fields.push_back(make_field("async_save", SATUNE_MEMBER(async_save),
                              "write periodic snapshots in the background, from a copy in host memory, while "
                              "training goes on",
                              kFree));
  fields.push_back(make_field("save_only_model", SATUNE_MEMBER(save_only_model),
                              "snapshots without optimizer state: smaller, but no run can resume from them",
                              kFree));
  fields.push_back(make_field("export_at_end", SATUNE_MEMBER(export_at_end),
                              "write output_dir/export, a Hugging Face directory", kFree));
  fields.push_back(make_field("export_every_epoch", SATUNE_MEMBER(export_every_epoch),
                              "write output_dir/export-epoch-N as well", kFree));
  fields.push_back(make_field("export_dtype", SATUNE_MEMBER(export_dtype),
                              "of exported weights; \"auto\" = that of the model loaded", kFree));
  fields.push_back(
      make_field("resume", SATUNE_MEMBER(resume),
                 "\"auto\" takes up the newest complete snapshot of output_dir, \"never\" wants an "
                 "empty one, or a snapshot folder",
                 kFree));
  fields.push_back(make_field("allow_changes", SATUNE_MEMBER(allow_changes),
                              "resume although settings that change the trajectory differ", kFree));
  fields.push_back(make_field("nonfinite", SATUNE_MEMBER(nonfinite),
                              "after a loss or norm that is not finite: stop before that step, or skip it",
                              kFree));
  return fields;
}

#undef SATUNE_MEMBER

}  // namespace

const std::vector<Field>& settings_table() {
  static const std::vector<Field> table = [] {
    std::vector<Field> all;
    for (auto fields : {model_fields(), data_fields(), length_fields(), optimizer_fields(), machine_fields(),
                        run_fields()}) {
      for (Field& field : fields) all.push_back(std::move(field));
    }
    return all;
  }();
  return table;
}

const Field* find_field(std::string_view key) {
  for (const Field& field : settings_table()) {
    if (field.info.key == key) return &field;
  }
  return nullptr;
}

const std::vector<SettingInfo>& setting_infos() {
  static const std::vector<SettingInfo> infos = [] {
    std::vector<SettingInfo> all;
    for (const Field& field : settings_table()) all.push_back(field.info);
    return all;
  }();
  return infos;
}

}  // namespace satune
