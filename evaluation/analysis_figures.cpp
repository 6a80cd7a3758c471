#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "evaluation/analysis_report.h"

namespace satune {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::vector<std::string> indices(int64_t begin, int64_t end) {
  std::vector<std::string> names;
  for (int64_t i = begin; i < end; ++i) names.push_back(std::to_string(i));
  return names;
}

std::vector<std::vector<double>> rows_of(const at::Tensor& values_RC) {
  const at::Tensor contiguous = values_RC.contiguous();
  std::vector<std::vector<double>> rows;
  for (int64_t r = 0; r < contiguous.size(0); ++r) {
    const double* row = contiguous.const_data_ptr<double>() + r * contiguous.size(1);
    rows.emplace_back(row, row + contiguous.size(1));
  }
  return rows;
}

/// [layers - 1][heads]: each layer's heads with those of the layer before.
std::vector<std::vector<double>> neighbour_similarity(const at::Tensor& cosines_LHLH) {
  return rows_of(head_similarity(cosines_LHLH).diagonal(-1, 1, 2).t());
}

/// A model of one layer has nothing to set beside it.
bool has_layer_pairs(const ModelAnalysis& model) {
  return model.config.num_hidden_layers > 1;
}

Drawing similarity_figure(const ModelAnalysis& model) {
  Heatmap heatmap;
  const at::Tensor values = layer_similarity(model.cosines_LHLH);
  const int64_t layers = values.size(0);
  heatmap.title = "Attention similarity of layers";
  const auto neighbours = values.diagonal(-1);
  heatmap.description = fmt::format(
      "Cosine similarity of the attention weights of each pair of layers, mean over heads and "
      "documents. Neighbouring layers are {:.2f} alike on average; the most alike are layers {} and {} "
      "({:.2f}).",
      neighbours.mean().item<double>(), neighbours.argmax().item<int64_t>(),
      neighbours.argmax().item<int64_t>() + 1, neighbours.max().item<double>());
  heatmap.row_axis = heatmap.column_axis = "layer";
  heatmap.row_names = heatmap.column_names = indices(0, layers);
  heatmap.values = rows_of(values);
  heatmap.high = 1;
  return draw(heatmap);
}

/// One value for each head, a row a layer from `first_layer` on.
Heatmap head_heatmap(const ModelAnalysis& model, int64_t first_layer) {
  Heatmap heatmap;
  heatmap.row_axis = "layer";
  heatmap.column_axis = "head";
  heatmap.row_names = indices(first_layer, model.config.num_hidden_layers);
  heatmap.column_names = indices(0, model.config.num_attention_heads);
  return heatmap;
}

Drawing head_figure(const ModelAnalysis& model) {
  Heatmap heatmap = head_heatmap(model, 1);
  heatmap.title = "Similarity of each head with the layer before";
  heatmap.description =
      "Cosine similarity of the attention weights of each head with those of the same head one layer below, "
      "mean "
      "over documents.";
  heatmap.values = neighbour_similarity(model.cosines_LHLH);
  heatmap.high = 1;
  return draw(heatmap);
}

Drawing isotropy_figure(const ModelAnalysis& model) {
  Heatmap heatmap = head_heatmap(model, 0);
  heatmap.title = "Weighted cumulative variance of attention weights";
  heatmap.description =
      "sum_k r_k (r_1 + ... + r_k) over the principal components of each head's attention weights, mean over "
      "documents: 1 = all variance in one direction, lower = more isotropic.";
  heatmap.values = rows_of(model.isotropy.attention_LH.mean());
  return draw(heatmap);
}

Drawing hidden_figure(const ModelAnalysis& model) {
  const at::Tensor values = model.isotropy.hidden_states.mean();
  Curve curve{"hidden states", {}, {}};
  for (int64_t i = 0; i < values.size(0); ++i) {
    curve.x.push_back(static_cast<double>(i));
    curve.y.push_back(values[i].item<double>());
  }
  return draw(LineChart{
      .title = "Weighted cumulative variance of hidden states",
      .description =
          "The same measure of the hidden states of a document's tokens: 0 is the embedding, i the output "
          "of layer i - 1. Lower = more isotropic.",
      .x_axis = "layers passed",
      .y_axis = "weighted cumulative variance",
      .curves = {std::move(curve)}});
}

/// Where the colours of the spans' losses end: a few spans that break the model (the first layers', mostly)
/// would leave all the others one colour. Nothing where none stands out.
std::optional<double> span_scale_end(const std::vector<MeasuredPlan>& candidates) {
  std::vector<double> increases;
  for (const MeasuredPlan& plan : candidates)
    if (plan.is_finite()) increases.push_back(plan.head_for_head.increase.ratio());
  if (increases.empty()) return std::nullopt;
  std::sort(increases.begin(), increases.end());
  const double end = 4 * increases[increases.size() / 2];
  return end > 0 && increases.back() > end ? std::optional(end) : std::nullopt;
}

Drawing span_figure(const ModelAnalysis& model) {
  const int64_t layers = model.config.num_hidden_layers;
  Heatmap heatmap;
  heatmap.title = "Loss added by sharing a span, without training";
  heatmap.description = fmt::format(
      "Increase of the loss per target token when layers first to last reuse the attention weights of "
      "the layer before them; the dense model's loss is {:.4f}. Grey: not measured, or not a number.",
      model.dense_loss.ratio());
  heatmap.high = span_scale_end(model.candidates);
  if (heatmap.high)
    heatmap.description += fmt::format(
        " The scale ends at {:.3g}, four times the median: whatever is above has its last colour.",
        *heatmap.high);
  heatmap.row_axis = "first shared layer";
  heatmap.column_axis = "last shared layer";
  heatmap.row_names = heatmap.column_names = indices(1, layers);
  heatmap.values.assign(layers - 1, std::vector<double>(layers - 1, kNone));
  for (const MeasuredPlan& plan : model.candidates)
    if (plan.is_finite())
      heatmap.values[plan.span->first - 1][plan.span->last - 1] = plan.head_for_head.increase.ratio();
  return draw(heatmap);
}

Drawing frontier_figure(const ModelAnalysis& model) {
  Curve direct{"head for head", {}, {}}, assigned{"heads assigned by similarity", {}, {}};
  for (const MeasuredPlan& plan : model.frontier) {
    direct.x.push_back(plan.shared_layers);
    direct.y.push_back(plan.head_for_head.increase.ratio());
    assigned.x.push_back(plan.shared_layers);
    assigned.y.push_back(plan.assigned.increase.ratio());
  }
  LineChart chart{
      .title = "Least loss added for a number of shared layers",
      .description = "The best plan found for each number of shared layers, measured without training.",
      .x_axis = "shared layers",
      .y_axis = "increase of the loss",
      .curves = {std::move(direct), std::move(assigned)}};
  if (model.allowed_increase) {
    chart.level_lines = {*model.allowed_increase};
    chart.description += fmt::format(" The dashed level is the budget, {:.4g}.", *model.allowed_increase);
  }
  return draw(chart);
}

/// One curve a model: each layer with the one before.
Drawing neighbours_figure(const AnalysisReport& report) {
  LineChart chart{.title = "Similarity of each layer with the one before",
                  .description = "Mean over heads and documents, a line for each model or snapshot.",
                  .x_axis = "layer",
                  .y_axis = "cosine similarity",
                  .curves = {}};
  for (const ModelAnalysis& model : report.models) {
    if (!has_layer_pairs(model)) continue;
    Curve curve{model_title(model), {}, {}};
    const at::Tensor values = layer_similarity(model.cosines_LHLH).diagonal(-1);
    for (int64_t i = 0; i < values.size(0); ++i) {
      curve.x.push_back(static_cast<double>(i + 1));
      curve.y.push_back(values[i].item<double>());
    }
    chart.curves.push_back(std::move(curve));
  }
  return draw(chart);
}

/// Names of which several snapshots were analysed, in the order of the report: the runs.
std::vector<std::string> runs_of(const AnalysisReport& report) {
  std::map<std::string, int> snapshots;
  std::vector<std::string> runs;
  for (const ModelAnalysis& model : report.models)
    if (model.step && has_layer_pairs(model) && ++snapshots[model.name] == 2) runs.push_back(model.name);
  return runs;
}

/// Over the snapshots of each run.
Drawing steps_figure(const AnalysisReport& report, const std::vector<std::string>& runs) {
  LineChart chart{
      .title = "Similarity over training",
      .description = "Mean similarity of neighbouring layers, and of all pairs, at each snapshot of a run.",
      .x_axis = "step",
      .y_axis = "cosine similarity",
      .curves = {}};
  for (const std::string& run : runs) {
    const std::string prefix = runs.size() > 1 ? run + ": " : "";
    Curve neighbours{prefix + "neighbours", {}, {}}, pairs{prefix + "all pairs", {}, {}};
    for (const ModelAnalysis& model : report.models) {
      if (!model.step || model.name != run) continue;
      const at::Tensor values = layer_similarity(model.cosines_LHLH);
      const auto layers = static_cast<double>(values.size(0));
      neighbours.x.push_back(static_cast<double>(*model.step));
      neighbours.y.push_back(values.diagonal(-1).mean().item<double>());
      pairs.x.push_back(static_cast<double>(*model.step));
      pairs.y.push_back(values.tril(-1).sum().item<double>() / (layers * (layers - 1) / 2));
    }
    chart.curves.push_back(std::move(neighbours));
    chart.curves.push_back(std::move(pairs));
  }
  return draw(chart);
}

}  // namespace

std::vector<NamedFigure> analysis_figures(const AnalysisReport& report) {
  std::vector<NamedFigure> figures;
  const size_t count = report.models.size();
  for (size_t i = 0; i < count; ++i) {
    const ModelAnalysis& model = report.models[i];
    const std::string prefix = count == 1 ? "" : fmt::format("model-{}-", i + 1);
    const auto add = [&](const char* name, Drawing drawing) {
      figures.push_back({prefix + name, i, std::move(drawing)});
    };
    if (has_layer_pairs(model)) {
      add("similarity", similarity_figure(model));
      add("head-similarity", head_figure(model));
    }
    if (model.isotropy.documents > 0) {
      add("isotropy", isotropy_figure(model));
      add("hidden-states", hidden_figure(model));
    }
    if (!model.candidates.empty()) add("spans", span_figure(model));
    if (!model.frontier.empty()) add("shared-layers", frontier_figure(model));
  }
  if (std::any_of(report.models.begin(), report.models.end(), has_layer_pairs))
    figures.push_back({"neighbours", count, neighbours_figure(report)});
  const std::vector<std::string> runs = runs_of(report);
  if (!runs.empty()) figures.push_back({"steps", count, steps_figure(report, runs)});
  return figures;
}

}  // namespace satune
