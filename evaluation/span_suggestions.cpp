#include "evaluation/span_suggestions.h"

#include <fmt/format.h>

#include <limits>

#include "model/decode.h"
#include "model/files/tensor_table.h"
#include "model/flops.h"

namespace satune {

std::vector<Span> candidate_spans(int num_layers, int longest) {
  std::vector<Span> spans;
  for (int first = 1; first < num_layers; ++first)
    for (int last = first; last < num_layers && last - first < longest; ++last)
      spans.push_back({first, last});
  return spans;
}

std::string spans_text(const std::vector<Span>& spans) {
  std::string text;
  for (const Span& span : spans) {
    if (!text.empty()) text += ',';
    text += span.length() == 1 ? fmt::format("{}", span.first) : fmt::format("{}-{}", span.first, span.last);
  }
  return text;
}

std::vector<PredictedPlan> predict_plans(int num_layers, const std::vector<MeasuredSpan>& measured) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  // best[end][count]: least damage of `count` shared layers among layers [0, end); `via` is the last span of
  // it, or -1 where layer end - 1 does not share.
  struct Cell {
    double increase = kNone;
    int via = -1;
  };
  std::vector<std::vector<Cell>> best(num_layers + 1, std::vector<Cell>(num_layers));
  best[0][0].increase = 0;
  for (int end = 1; end <= num_layers; ++end) {
    best[end] = best[end - 1];
    for (Cell& cell : best[end]) cell.via = -1;
    for (size_t i = 0; i < measured.size(); ++i) {
      const Span& span = measured[i].span;
      if (span.last != end - 1) continue;
      // The anchor, layer first - 1, shares with nobody.
      for (int count = span.length(); count < num_layers; ++count) {
        const double sum = best[span.first - 1][count - span.length()].increase + measured[i].increase;
        if (sum < best[end][count].increase) best[end][count] = {sum, static_cast<int>(i)};
      }
    }
  }
  std::vector<PredictedPlan> plans;
  for (int wanted = 1; wanted < num_layers; ++wanted) {
    if (best[num_layers][wanted].increase == kNone) continue;
    PredictedPlan plan{{}, best[num_layers][wanted].increase};
    for (int end = num_layers, count = wanted; count > 0;) {
      const int via = best[end][count].via;
      if (via < 0) {
        --end;
        continue;
      }
      const Span& span = measured[via].span;
      plan.spans.insert(plan.spans.begin(), span);
      count -= span.length();
      end = span.first - 1;
    }
    plans.push_back(std::move(plan));
  }
  return plans;
}

PlanSavings plan_savings(const ModelConfig& dense, const SharingPlan& plan, double document_length,
                         int64_t element_bytes) {
  ModelConfig shared = dense;
  shared.sharing = plan;
  const TensorTable dense_table(dense), shared_table(shared);
  // With every tensor frozen, what is left of a training step is its forward pass.
  const auto forward = [&](const ModelConfig& config, const TensorTable& table) {
    return training_flops_per_token(config, table, std::vector<bool>(table.tensors().size(), false),
                                    document_length);
  };
  return {dense_table.parameter_count() - shared_table.parameter_count(),
          forward(dense, dense_table) - forward(shared, shared_table),
          kv_cache_bytes_per_token(dense, element_bytes) - kv_cache_bytes_per_token(shared, element_bytes)};
}

}  // namespace satune
