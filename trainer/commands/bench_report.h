// What `satune bench` is asked and finds out, and its two forms: tables and JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/files/json.h"
#include "trainer/bench_decoding.h"
#include "trainer/bench_rows.h"
#include "trainer/bench_training.h"
#include "trainer/commands/rank_options.h"
#include "trainer/model_plan.h"

namespace satune {

struct BenchRequest {
  std::string model, sharing, precision = "bf16", checkpointing = "true", device = "auto";
  std::optional<std::string> anchor, output;
  std::vector<std::string> overrides;
  int64_t sequence_length = 4096, micro_batch = 1, accumulation = 1, turns = 0;
  std::optional<int64_t> document_length, zero_stage, layers;
  std::optional<double> peak_tflops;
  BenchLength length;
  bool decode = false, json = false;
  DecodeLength decoding;
  RankOptions ranks;
};

/// The dense model, or one with a sharing plan.
struct BenchVariant {
  Settings settings;
  ModelPlan model;

  const std::string& sharing() const { return model.config.sharing.layers_text(); }
  std::string name() const;  ///< "dense", "sharing 23-26"
};

/// The two of a request, or the dense one alone. Throws BadInput.
std::vector<BenchVariant> bench_variants(const BenchRequest& request);

/// Where it was measured.
struct BenchPlace {
  std::string device;
  int64_t threads = 1, world_size = 1;
};

/// What one variant's steps came to.
struct TrainingResult {
  TrainingTimes times;  ///< of all turns
  double median = 0, p10 = 0, p90 = 0;
  double tokens_per_second = 0, flops_per_token = 0, peak_flops = 0, mfu = 0;
  std::vector<BenchRow> rows;
};
TrainingResult training_result(const BenchVariant& variant, TrainingTimes times, const BenchRequest& request,
                               const BenchPlace& place);
/// Adds the steps of another turn.
void add_turn(TrainingTimes& all, TrainingTimes turn);

Json bench_json(const BenchRequest& request, const BenchPlace& place,
                const std::vector<BenchVariant>& variants, const std::vector<TrainingResult>& results);
Json bench_json(const BenchRequest& request, const BenchPlace& place,
                const std::vector<BenchVariant>& variants, const DecodeSeries& series);
std::string bench_text(const BenchRequest& request, const BenchPlace& place,
                       const std::vector<BenchVariant>& variants, const std::vector<TrainingResult>& results);
std::string bench_text(const BenchRequest& request, const BenchPlace& place,
                       const std::vector<BenchVariant>& variants, const DecodeSeries& series);

}  // namespace satune
