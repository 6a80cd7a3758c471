#include <fmt/format.h>

#include <algorithm>

#include "data/files/counted.h"
#include "evaluation/analysis_report.h"
#include "evaluation/figures/html_page.h"

namespace satune {
namespace {

std::string with_error(const RatioSums& sums) {
  const std::optional<double> error = sums.standard_error();
  return error ? fmt::format("{:.4f} \xC2\xB1 {:.4f}", sums.ratio(), *error)
               : fmt::format("{:.4f}", sums.ratio());
}

HtmlTable frontier_table(const ModelAnalysis& model) {
  HtmlTable table{
      "The best plan found for each number of shared layers (\xC2\xB1 standard error over documents). "
      "Savings are against the dense model.",
      {"--sharing", "layers", "loss added", "heads assigned", "parameters saved", "FLOPs saved a token",
       "KV bytes saved a token"},
      {}};
  for (const MeasuredPlan& plan : model.frontier)
    table.rows.push_back({plan.layers, std::to_string(plan.shared_layers),
                          with_error(plan.head_for_head.increase), with_error(plan.assigned.increase),
                          std::to_string(plan.savings.parameters),
                          fmt::format("{:.4g}", plan.savings.forward_flops_per_token),
                          std::to_string(plan.savings.kv_cache_bytes_per_token)});
  return table;
}

/// Of neighbouring layers. The loss is that of the span of this one layer.
HtmlTable assignment_table(const ModelAnalysis& model) {
  HtmlTable table{
      "Neighbouring layers: similarity head for head, and with the anchor's heads assigned to those of the "
      "layer (Hungarian algorithm); what that takes off the loss where the layer alone shares (- = not "
      "measured).",
      {"anchor, layer", "head for head", "assigned", "gain in similarity", "gain in loss"},
      {}};
  for (const HeadAssignment& pair : model.assignments) {
    if (pair.layer != pair.anchor + 1) continue;
    std::string gain = "-";
    for (const MeasuredPlan& plan : model.candidates)
      if (plan.span == Span{pair.layer, pair.layer}) gain = fmt::format("{:.4f}", plan.assigned_gain());
    table.rows.push_back({fmt::format("{}, {}", pair.anchor, pair.layer),
                          fmt::format("{:.3f}", pair.similarity),
                          fmt::format("{:.3f}", pair.assigned_similarity),
                          fmt::format("{:.3f}", pair.assigned_similarity - pair.similarity), gain});
  }
  return table;
}

void add_model(HtmlPage& page, const AnalysisReport& report, size_t index,
               const std::vector<NamedFigure>& figures) {
  const ModelAnalysis& model = report.models[index];
  page.heading(model_title(model));
  page.paragraph(fmt::format(
      "{}. {}, {}, {}.", documents_text(model), counted(model.config.num_hidden_layers, "layer"),
      counted(model.config.num_attention_heads, "query head"), describe_sharing(model.config.sharing)));
  if (!model.note.empty()) page.paragraph(model.note);
  if (model.allowed_increase && !model.suggested)
    page.paragraph(fmt::format("No measured plan adds at most {:.4g} to the loss.", *model.allowed_increase));
  if (model.suggested) {
    const MeasuredPlan& plan = model.frontier[*model.suggested];
    page.paragraph(fmt::format(
        "Suggested: --sharing {} ({}). Without training it adds {} to the loss of {:.4f} and saves {} "
        "parameters, {:.4g} FLOPs and {} bytes of KV cache a token.",
        plan.layers, counted(plan.shared_layers, "layer"), with_error(plan.head_for_head.increase),
        model.dense_loss.ratio(), plan.savings.parameters, plan.savings.forward_flops_per_token,
        plan.savings.kv_cache_bytes_per_token));
  }
  for (const NamedFigure& figure : figures)
    if (figure.model == index) page.figure(figure.drawing);
  if (!model.frontier.empty()) page.table(frontier_table(model));
  if (!model.assignments.empty()) page.table(assignment_table(model));
}

}  // namespace

std::string analysis_page(const AnalysisReport& report, const std::vector<NamedFigure>& figures) {
  HtmlPage page("Which layers to share");
  std::string settings = report.data;
  for (const auto& [key, value] : report.settings.items())
    settings += fmt::format(", {}: {}", key, value.is_string() ? value.get<std::string>() : value.dump());
  page.paragraph("Data: " + settings + ".");
  const bool together = std::any_of(figures.begin(), figures.end(), [&](const NamedFigure& figure) {
    return figure.model == report.models.size();
  });
  if (report.models.size() > 1 && together) {
    page.heading("All models");
    for (const NamedFigure& figure : figures)
      if (figure.model == report.models.size()) page.figure(figure.drawing);
  }
  for (size_t i = 0; i < report.models.size(); ++i) add_model(page, report, i, figures);
  page.heading("What is measured");
  const Json definitions = analysis_json({report.data, Json::object(), {}})["definitions"];
  for (const auto& [key, value] : definitions.items())
    page.paragraph(key + ": " + value.get<std::string>() + ".");
  return page.text();
}

}  // namespace satune
