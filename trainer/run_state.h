// How far a run is: the counters that a snapshot holds beside the numbers of the optimizer.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "data/files/json.h"
#include "trainer/loss_scale.h"
#include "trainer/metrics.h"

namespace satune {

struct RunState {
  int64_t step = 0;     ///< finished steps
  int64_t updates = 0;  ///< optimizer updates among them (a step without targets or skipped has none)
  int64_t num_tokens = 0;
  int64_t num_samples = 0;
  int64_t target_tokens = 0;
  int64_t skipped_steps = 0;   ///< by `nonfinite` "skip"
  int64_t overflow_steps = 0;  ///< fp16: update left out and loss scale halved
  LossScale loss_scale;

  // Evaluation.
  std::optional<double> best_eval_loss;
  int64_t best_step = 0;
  int64_t evaluations_without_gain = 0;
  bool stopped_early = false;

  /// The row of step `step` when the run was stopped before its evaluation was done; the resumed run
  /// evaluates first and then logs it.
  std::optional<StepMetrics> unlogged;
};

Json run_state_json(const RunState& state);
/// `source` names the file in errors. Throws BadInput.
RunState parse_run_state(const Json& json, std::string_view source);

}  // namespace satune
