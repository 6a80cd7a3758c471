// One model from its weights to everything that `satune analyze` tells about it.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "evaluation/analysis_report.h"

namespace satune {

/// How much the loss may rise: nats per target token, or a share of the dense model's loss.
struct LossBudget {
  double value = 0.05;
  bool relative = true;
};

struct AnalysisOptions {
  int max_span = 8;           ///< longest candidate span; 0 = no loss is measured
  std::optional<int> layers;  ///< suggest the best plan of this many shared layers; else by the budget
  LossBudget budget = {};
};

/// Called as the work goes on, with what is under way: "layers", "spans" (their losses), "plans" (those of
/// several spans).
using AnalysisProgress = std::function<void(const std::string& stage, int64_t done, int64_t total)>;

/// Throws BadInput where options.layers cannot be had of a dense model like this: told before weights are
/// loaded.
void check_analysis_options(const AnalysisOptions& options, const ModelConfig& config);

/// Measures similarity and isotropy on every document; for a dense model also the loss of every candidate
/// span, then that of the plans which predict_plans() makes of them. A model that shares already is analysed
/// as it computes, a shared layer having its anchor's weights, and the note says that no span was measured;
/// so it does of a model of one layer, of which only the isotropy is left. Throws BadInput as
/// check_analysis_options() does, and naming model and document where the model's own hidden states or loss
/// are not finite. A plan under which the loss is not is measured and never suggested.
ModelAnalysis analyze_model(const std::string& name, const Llama& model, const AnalysisDocuments& documents,
                            const AnalysisOptions& options, const AnalysisProgress& progress = {});

}  // namespace satune
