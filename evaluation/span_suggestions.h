// From the measured damage of single spans to plans worth a measurement of their own, and what a plan saves.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/files/model_config.h"

namespace satune {

/// Layers [first, last] share, the layer before them is the anchor.
struct Span {
  int first = 0, last = 0;
  int length() const { return last - first + 1; }
  bool operator==(const Span&) const = default;
};

/// Every span of 1 to `longest` layers of a model; none begins at layer 0.
std::vector<Span> candidate_spans(int num_layers, int longest);

/// "3-4,7": what --sharing takes.
std::string spans_text(const std::vector<Span>& spans);

struct MeasuredSpan {
  Span span;
  double increase = 0;  ///< of the loss
};

/// Spans that together share a number of layers, with the least sum of their single increases: the best guess
/// before it is measured, because damages of distant spans nearly add.
struct PredictedPlan {
  std::vector<Span> spans;  ///< ascending, a layer at least between two
  double predicted_increase = 0;
};

/// The plan for each number of shared layers 1 .. num_layers - 1 that `measured` can make up, ascending.
std::vector<PredictedPlan> predict_plans(int num_layers, const std::vector<MeasuredSpan>& measured);

/// What a plan leaves out of the dense model.
struct PlanSavings {
  int64_t parameters = 0;                ///< q_proj and k_proj of shared layers
  double forward_flops_per_token = 0;    ///< at the given document length (model/flops.h)
  int64_t kv_cache_bytes_per_token = 0;  ///< K of shared layers
};
PlanSavings plan_savings(const ModelConfig& dense, const SharingPlan& plan, double document_length,
                         int64_t element_bytes);

}  // namespace satune
