// What `satune analyze` found, as JSON, figures and a page.
#pragma once

#include <cmath>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/files/json.h"
#include "evaluation/figures/charts.h"
#include "evaluation/layer_analysis.h"
#include "evaluation/span_suggestions.h"

namespace satune {

/// A plan whose loss was measured.
struct MeasuredPlan {
  std::string layers;  ///< as --sharing takes it, anchor "before"
  int shared_layers = 0;
  std::optional<Span> span;          ///< where it is a single one
  PlanLoss head_for_head, assigned;  ///< direct sharing; with the anchor's heads assigned by similarity
  std::optional<double> predicted_increase;  ///< of plans made of several spans
  PlanSavings savings;

  /// Loss that the assignment of heads takes off that of head for head.
  double assigned_gain() const { return head_for_head.loss.ratio() - assigned.loss.ratio(); }
  /// Whether direct sharing gives a loss at all; a plan without is never suggested.
  bool is_finite() const { return std::isfinite(head_for_head.increase.ratio()); }
};

/// One model, or one snapshot of a run.
struct ModelAnalysis {
  std::string name;
  std::optional<int64_t> step;  ///< of a snapshot
  ModelConfig config;
  std::string note;  ///< what was left out, and why; "" = nothing
  int64_t documents = 0, tokens = 0, over_length = 0;
  at::Tensor cosines_LHLH;  ///< mean_cosines()
  std::vector<HeadAssignment> assignments;
  IsotropySums isotropy;
  RatioSums dense_loss;                  ///< without items where no span was measured
  std::vector<MeasuredPlan> candidates;  ///< single spans
  std::vector<MeasuredPlan> frontier;    ///< the best plan found for each number of shared layers, ascending
  std::optional<double> allowed_increase;  ///< the loss budget, where it chose
  std::optional<size_t> suggested;         ///< of the frontier; nothing where none fits
};

struct AnalysisReport {
  std::string data;
  Json settings;  ///< of the data and the options, as they are printed
  std::vector<ModelAnalysis> models;
};

Json analysis_json(const AnalysisReport& report);

/// A figure and the name of its files, without ending: "similarity", with several models
/// "model-2-similarity".
struct NamedFigure {
  std::string file;
  size_t model = 0;  ///< index; models.size() = of all together
  Drawing drawing;
};
/// Those that there is something for: a model of one layer has no similarities and no spans.
std::vector<NamedFigure> analysis_figures(const AnalysisReport& report);

std::string analysis_page(const AnalysisReport& report, const std::vector<NamedFigure>& figures);

/// "8 documents, 912 tokens; 2 longer ones are left out"
std::string documents_text(const ModelAnalysis& model);

/// A name of the model for titles and tables: with its step, where it is a snapshot.
std::string model_title(const ModelAnalysis& model);

}  // namespace satune
