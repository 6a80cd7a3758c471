#include "trainer/commands/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "data/files/error.h"
#include "model/flops.h"
#include "model/kv_cache.h"
#include "trainer/memory_plan.h"
#include "trainer/percentile.h"

namespace satune {
namespace {

/// Settings that a step or its memory depends on and that have no option of their own.
constexpr std::string_view kMeasuredSettings[] = {"activation_offloading",
                                                  "attn_implementation",
                                                  "deterministic",
                                                  "fp8",
                                                  "adam_beta1",
                                                  "adam_beta2",
                                                  "adam_epsilon",
                                                  "master_weights",
                                                  "max_grad_norm",
                                                  "num_threads",
                                                  "optimizer_moments",
                                                  "optimizer_offload",
                                                  "shard_group_size",
                                                  "weight_decay",
                                                  "ddp_timeout"};

/// The one of them that generation reads, too.
constexpr std::string_view kDecodingSetting = "num_threads";

void check_overrides(const BenchRequest& request) {
  for (const std::string& word : request.overrides) {
    const std::string key = word.substr(0, word.find('='));
    const bool known = word.find('=') != std::string::npos &&
                       std::find(std::begin(kMeasuredSettings), std::end(kMeasuredSettings), key) !=
                           std::end(kMeasuredSettings);
    if (known && request.decode && key != kDecodingSetting)
      throw bad_input(word, "--decode, which does not read it",
                      fmt::format("a training step, or no setting but {}", kDecodingSetting));
    if (known) continue;
    throw bad_input(
        "satune bench", word,
        fmt::format("key=value with one of {}; shapes have options", fmt::join(kMeasuredSettings, ", ")));
  }
}

Settings settings_of(const BenchRequest& request) {
  check_overrides(request);
  std::vector<std::string> overrides = request.overrides;
  overrides.insert(overrides.begin(),
                   {"model_name_or_path=" + request.model, "precision=" + request.precision,
                    "gradient_checkpointing=" + request.checkpointing, "device=" + request.device,
                    fmt::format("max_length={}", request.sequence_length),
                    fmt::format("per_device_train_batch_size={}", request.micro_batch),
                    fmt::format("gradient_accumulation_steps={}", request.accumulation)});
  if (request.zero_stage) overrides.push_back(fmt::format("zero_stage={}", *request.zero_stage));
  if (request.anchor) overrides.push_back("sharing.anchor=" + *request.anchor);
  return default_settings(overrides);
}

void check_shape(const BenchRequest& request, const ModelConfig& own) {
  if (request.layers && *request.layers > own.num_hidden_layers)
    throw bad_input("--layers", std::to_string(*request.layers),
                    fmt::format("at most {}, the layers of {}", own.num_hidden_layers, request.model));
  if (!request.decode && request.sequence_length % request.length.document_length != 0)
    throw bad_input("--document-length", std::to_string(request.length.document_length),
                    fmt::format("a divisor of --sequence-length {}", request.sequence_length));
  const int64_t longest =
      request.decode ? request.decoding.prompt + request.decoding.tokens : request.length.document_length;
  if (longest > own.max_position_embeddings)
    throw bad_input(
        request.decode            ? "--prompt-length and --new-tokens"
        : request.document_length ? "--document-length"
                                  : "--sequence-length",
        std::to_string(longest),
        fmt::format("at most {}, the model's max_position_embeddings", own.max_position_embeddings));
  if (request.anchor && request.sharing.empty())
    throw bad_input("--anchor", *request.anchor, "--sharing LAYERS beside it");
}

Json place_json(const BenchPlace& place) {
  return {{"device", place.device}, {"threads", place.threads}, {"world_size", place.world_size}};
}

Json shared_json(const BenchRequest& request, const BenchPlace& place,
                 const std::vector<BenchVariant>& variants) {
  const ModelConfig& config = variants.front().model.config;
  return {{"kind", request.decode ? "decoding" : "training"},
          {"model", request.model},
          {"layers", config.num_hidden_layers},
          {"cut_to_layers", request.layers ? Json(*request.layers) : Json(nullptr)},
          {"precision", request.precision},
          {"place", place_json(place)}};
}

Json floors_json(const Floors& floors) {
  Json json = {{"gemm_flops_per_s", floors.gemm_flops}, {"copy_bytes_per_s", floors.copy_bytes}};
  if (floors.gemm8_flops > 0) json["gemm_8bit_flops_per_s"] = floors.gemm8_flops;
  return json;
}

Json memory_json(const TrainingTimes& times) {
  Json items;
  for (const auto& [name, bytes] : times.plan.items()) items[name] = bytes;
  return {{"peak_bytes", times.memory_peak},
          {"before_bytes", times.memory_before},
          {"planned_bytes", times.plan.total()},
          {"planned", items}};
}

Json training_json(const BenchVariant& variant, const TrainingResult& result) {
  const TrainingTimes& times = result.times;
  return {
      {"name", variant.name()},
      {"sharing", variant.sharing()},
      {"parameters", variant.model.table.parameter_count()},
      {"zero_stage", times.zero_stage},
      {"steps", times.step_seconds.size()},
      {"step_seconds",
       {{"median", result.median}, {"p10", result.p10}, {"p90", result.p90}, {"all", times.step_seconds}}},
      {"tokens_per_s", result.tokens_per_second},
      {"flops_per_token", result.flops_per_token},
      {"mfu", result.mfu},
      {"peak_flops", result.peak_flops},
      {"skipped_updates", times.skipped_updates},
      {"final_loss", times.final_loss},
      {"memory", memory_json(times)},
      {"attention", times.attention},
      {"floors", floors_json(times.floors)},
      {"segments", rows_json(result.rows)}};
}

Json batch_json(const DecodeTimes& times) {
  return {{"batch", times.batch},
          {"tokens_per_s", times.tokens_per_second()},
          {"step_ms", 1000 * times.step_seconds},
          {"prompt_ms", 1000 * times.prompt_seconds},
          {"kv_bytes", times.cache_bytes},
          {"kv_bytes_saved", times.dense_cache_bytes - times.cache_bytes}};
}

}  // namespace

std::string BenchVariant::name() const {
  return model.config.sharing.empty() ? "dense" : "sharing " + sharing();
}

std::vector<BenchVariant> bench_variants(const BenchRequest& request) {
  const Settings settings = settings_of(request);
  const auto plan = [&](const Settings& asked, std::optional<int64_t> layers) {
    return naming_source(asked, [&] { return plan_architecture(asked, layers, "--sharing"); });
  };
  check_shape(request, plan(settings, std::nullopt).config);
  BenchVariant dense{settings, plan(settings, request.layers)};
  std::vector<BenchVariant> variants;
  const bool shares_already = !dense.model.config.sharing.empty();
  if (!request.sharing.empty() || shares_already) {
    BenchVariant shared = dense;
    shared.settings.sharing_layers = request.sharing;
    shared.model = plan(shared.settings, request.layers);
    variants.push_back(std::move(shared));
  }
  if (shares_already) {
    dense.model.config.sharing = SharingPlan(static_cast<int>(dense.model.config.num_hidden_layers));
    dense.model.table = TensorTable(dense.model.config);
    dense.model.trained_mask.assign(dense.model.table.tensors().size(), true);
  }
  variants.insert(variants.begin(), std::move(dense));
  return variants;
}

void add_turn(TrainingTimes& all, TrainingTimes turn) {
  if (all.step_seconds.empty()) {
    all = std::move(turn);
    return;
  }
  all.step_seconds.insert(all.step_seconds.end(), turn.step_seconds.begin(), turn.step_seconds.end());
  const auto first = static_cast<int64_t>(all.recorded.parts.size());
  for (RecordedPart part : turn.recorded.parts) {
    if (part.parent >= 0) part.parent += first;
    all.recorded.parts.push_back(part);
  }
  all.skipped_updates += turn.skipped_updates;
  all.floors = better_of(all.floors, turn.floors);
  all.memory_peak = std::max(all.memory_peak, turn.memory_peak);
}

TrainingResult training_result(const BenchVariant& variant, TrainingTimes times, const BenchRequest& request,
                               const BenchPlace& place) {
  TrainingResult result;
  result.median = percentile(times.step_seconds, 0.5);
  result.p10 = percentile(times.step_seconds, 0.1);
  result.p90 = percentile(times.step_seconds, 0.9);
  const double tokens = static_cast<double>(request.micro_batch * request.accumulation) *
                        static_cast<double>(request.sequence_length * place.world_size);
  result.tokens_per_second = tokens / result.median;
  result.flops_per_token =
      training_flops_per_token(variant.model.config, variant.model.table, variant.model.trained_mask,
                               static_cast<double>(request.length.document_length));
  result.peak_flops = request.peak_tflops ? *request.peak_tflops * 1e12 : times.floors.gemm_flops;
  result.mfu = result.flops_per_token * result.tokens_per_second /
               (result.peak_flops * static_cast<double>(place.world_size));
  result.rows = bench_rows(
      times.recorded, work_shape(variant.model, variant.settings, times, request.length, place.world_size),
      times.floors);
  result.times = std::move(times);
  return result;
}

Json bench_json(const BenchRequest& request, const BenchPlace& place,
                const std::vector<BenchVariant>& variants, const std::vector<TrainingResult>& results) {
  Json report = shared_json(request, place, variants);
  report["sequence_length"] = request.sequence_length;
  report["document_length"] = request.length.document_length;
  report["micro_batch"] = request.micro_batch;
  report["gradient_accumulation_steps"] = request.accumulation;
  report["gradient_checkpointing"] = request.checkpointing;
  report["turns"] = request.turns;
  report["warm_up"] = request.length.warm_up;
  report["peak_from"] = request.peak_tflops ? "--peak-tflops" : "measured GEMM rate";
  Json runs = Json::array();
  for (size_t i = 0; i < variants.size(); ++i) runs.push_back(training_json(variants[i], results[i]));
  report["runs"] = std::move(runs);
  if (results.size() == 2)
    report["sharing_speed_ratio"] = results[1].tokens_per_second / results[0].tokens_per_second;
  return report;
}

Json bench_json(const BenchRequest& request, const BenchPlace& place,
                const std::vector<BenchVariant>& variants, const DecodeSeries& series) {
  Json report = shared_json(request, place, variants);
  report["prompt_length"] = request.decoding.prompt;
  report["new_tokens"] = request.decoding.tokens;
  report["ended_by"] = series.ended_by;
  Json runs = Json::array();
  for (size_t i = 0; i < variants.size(); ++i) {
    Json batches = Json::array();
    for (const DecodeTimes& times : series.by_model[i]) batches.push_back(batch_json(times));
    const int64_t element = compute_element_bytes(variants[i].settings.precision);
    runs.push_back({{"name", variants[i].name()},
                    {"sharing", variants[i].sharing()},
                    {"parameters", variants[i].model.table.parameter_count()},
                    {"kv_bytes_per_token", kv_cache_bytes_per_token(variants[i].model.config, element)},
                    {"batches", std::move(batches)}});
  }
  report["runs"] = std::move(runs);
  return report;
}

}  // namespace satune
