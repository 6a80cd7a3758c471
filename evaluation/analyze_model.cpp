#include "evaluation/analyze_model.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "data/files/error.h"

namespace satune {
namespace {

WorkDone stage_of(const AnalysisProgress& progress, const std::string& stage) {
  if (!progress) return {};
  return [&progress, stage](int64_t done, int64_t total) { progress(stage, done, total); };
}

constexpr std::string_view kFiniteModel = "a model that computes finite numbers (--precision fp32?)";

class SpanStudy {
 public:
  SpanStudy(const Llama& model, const AnalysisDocuments& documents, ModelAnalysis& analysis,
            const AnalysisProgress& progress)
      : model_(model),
        documents_(documents),
        analysis_(analysis),
        progress_(progress),
        layers_(static_cast<int>(model.config().num_hidden_layers)),
        document_length_(static_cast<double>(documents.tokens()) /
                         static_cast<double>(documents.samples.size())) {}

  void measure_candidates(const AnalysisOptions& options) {
    std::vector<std::vector<Span>> plans;
    for (const Span& span : candidate_spans(layers_, options.max_span)) plans.push_back({span});
    analysis_.candidates = measure(plans, "spans");
  }

  /// Of each number of layers the best single span, or several together where that is measured to be better.
  void measure_frontier() {
    std::vector<MeasuredSpan> singles;
    for (const MeasuredPlan& plan : analysis_.candidates)
      if (plan.is_finite()) singles.push_back({*plan.span, plan.head_for_head.increase.ratio()});
    const std::vector<PredictedPlan> predicted = predict_plans(layers_, singles);
    std::vector<std::vector<Span>> several;
    std::vector<double> expected;
    for (const PredictedPlan& plan : predicted) {
      if (plan.spans.size() == 1) continue;
      several.push_back(plan.spans);
      expected.push_back(plan.predicted_increase);
    }
    std::vector<MeasuredPlan> all;
    if (!several.empty()) all = measure(several, "plans");
    for (size_t i = 0; i < all.size(); ++i) all[i].predicted_increase = expected[i];
    all.insert(all.end(), analysis_.candidates.begin(), analysis_.candidates.end());
    std::erase_if(all, [](const MeasuredPlan& plan) { return !plan.is_finite(); });
    for (int count = 1; count < layers_; ++count) {
      const MeasuredPlan* best = nullptr;
      for (const MeasuredPlan& plan : all)
        if (plan.shared_layers == count && (best == nullptr || increase(plan) < increase(*best)))
          best = &plan;
      if (best != nullptr) analysis_.frontier.push_back(*best);
    }
  }

  void suggest(const AnalysisOptions& options) {
    const std::vector<MeasuredPlan>& frontier = analysis_.frontier;
    if (!options.layers)
      analysis_.allowed_increase =
          options.budget.value * (options.budget.relative ? analysis_.dense_loss.ratio() : 1.0);
    for (size_t i = 0; i < frontier.size(); ++i) {
      const bool fits = options.layers ? frontier[i].shared_layers == *options.layers
                                       : increase(frontier[i]) <= *analysis_.allowed_increase;
      if (fits) analysis_.suggested = i;
    }
  }

 private:
  static double increase(const MeasuredPlan& plan) { return plan.head_for_head.increase.ratio(); }

  std::vector<MeasuredPlan> measure(const std::vector<std::vector<Span>>& plans, const std::string& stage) {
    std::vector<MeasuredPlan> measured;
    std::vector<LossQuery> queries;
    for (const std::vector<Span>& spans : plans) {
      MeasuredPlan plan;
      plan.layers = spans_text(spans);
      const SharingPlan sharing = SharingPlan::parse(plan.layers, AnchorRule::kBefore, layers_);
      plan.shared_layers = sharing.num_shared();
      if (spans.size() == 1) plan.span = spans.front();
      plan.savings = plan_savings(model_.config(), sharing, document_length_,
                                  static_cast<int64_t>(at::elementSize(model_.weights().type())));
      queries.push_back({sharing, {}});
      queries.push_back({sharing, head_maps(sharing, analysis_.assignments)});
      measured.push_back(std::move(plan));
    }
    const SpanSums sums = measure_spans(model_, documents_, queries, 0, 1, stage_of(progress_, stage));
    analysis_.dense_loss = sums.dense;
    if (sums.dense.items > 0 && !std::isfinite(sums.dense.ratio()))
      throw bad_input(analysis_.name, "a loss that is not finite", kFiniteModel);
    for (size_t i = 0; i < measured.size(); ++i) {
      measured[i].head_for_head = sums.plans[2 * i];
      measured[i].assigned = sums.plans[2 * i + 1];
    }
    return measured;
  }

  const Llama& model_;
  const AnalysisDocuments& documents_;
  ModelAnalysis& analysis_;
  const AnalysisProgress& progress_;
  int layers_;
  double document_length_;
};

}  // namespace

void check_analysis_options(const AnalysisOptions& options, const ModelConfig& config) {
  const auto layers = static_cast<int>(config.num_hidden_layers);
  if (!options.layers || !config.sharing.empty()) return;
  std::vector<MeasuredSpan> unmeasured;
  for (const Span& span : candidate_spans(layers, options.max_span)) unmeasured.push_back({span, 0});
  const auto most = static_cast<int>(predict_plans(layers, unmeasured).size());
  if (*options.layers > most)
    throw bad_input("--layers", std::to_string(*options.layers),
                    fmt::format("at most {}, what spans of up to {} layers can share of {}", most,
                                options.max_span, layers));
}

ModelAnalysis analyze_model(const std::string& name, const Llama& model, const AnalysisDocuments& documents,
                            const AnalysisOptions& options, const AnalysisProgress& progress) {
  check_analysis_options(options, model.config());
  ModelAnalysis analysis;
  analysis.name = name;
  analysis.config = model.config();
  analysis.documents = static_cast<int64_t>(documents.samples.size());
  analysis.tokens = documents.tokens();
  analysis.over_length = documents.over_length;
  const LayerSums layers = measure_layers(model, documents, 0, 1, stage_of(progress, "layers"));
  if (layers.broken)
    throw bad_input(
        name,
        fmt::format("hidden states of document {} that are not finite {}", layers.broken->document,
                    layers.broken->layer < 0 ? "in the embedding"
                                             : fmt::format("after layer {}", layers.broken->layer)),
        kFiniteModel);
  analysis.cosines_LHLH = mean_cosines(layers.similarity, model.config().num_hidden_layers);
  analysis.isotropy = layers.isotropy;
  analysis.assignments = assign_heads(analysis.cosines_LHLH);
  if (!model.config().sharing.empty()) {
    analysis.note = fmt::format(
        "This model shares attention already ({}): its layers are analysed as they compute, so that a shared "
        "layer "
        "and its anchor are alike by construction (similarity 1), and no further span is measured.",
        describe_sharing(model.config().sharing));
  } else if (model.config().num_hidden_layers == 1) {
    analysis.note =
        "This model has one layer: there are no layers to compare, and there is nothing that could share.";
  } else if (options.max_span > 0) {
    SpanStudy study(model, documents, analysis, progress);
    study.measure_candidates(options);
    study.measure_frontier();
    study.suggest(options);
  }
  return analysis;
}

}  // namespace satune
