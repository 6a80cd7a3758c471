#include <ATen/ATen.h>
#include <fmt/format.h>

#include "data/files/counted.h"
#include "evaluation/analysis_report.h"

namespace satune {
namespace {

/// Nested arrays of a CPU tensor of doubles.
Json tensor_json(const at::Tensor& values) {
  if (values.dim() == 0) return values.item<double>();
  Json array = Json::array();
  for (int64_t i = 0; i < values.size(0); ++i) array.push_back(tensor_json(values.select(0, i)));
  return array;
}

void add_ratio(Json& json, const std::string& name, const RatioSums& sums) {
  json[name] = sums.ratio();
  if (const auto error = sums.standard_error()) json[name + "_stderr"] = *error;
}

Json plan_json(const MeasuredPlan& plan) {
  Json json = {{"layers", plan.layers}, {"anchor", "before"}, {"shared_layers", plan.shared_layers}};
  add_ratio(json, "loss", plan.head_for_head.loss);
  add_ratio(json, "loss_increase", plan.head_for_head.increase);
  add_ratio(json, "assigned_heads_loss", plan.assigned.loss);
  add_ratio(json, "assigned_heads_loss_increase", plan.assigned.increase);
  json["assigned_heads_loss_gain"] = plan.assigned_gain();
  if (plan.predicted_increase) json["predicted_loss_increase"] = *plan.predicted_increase;
  json["saves"] = {{"parameters", plan.savings.parameters},
                   {"forward_flops_per_token", plan.savings.forward_flops_per_token},
                   {"kv_cache_bytes_per_token", plan.savings.kv_cache_bytes_per_token}};
  return json;
}

Json plans_json(const std::vector<MeasuredPlan>& plans) {
  Json json = Json::array();
  for (const MeasuredPlan& plan : plans) json.push_back(plan_json(plan));
  return json;
}

Json assignments_json(const std::vector<HeadAssignment>& assignments) {
  Json json = Json::array();
  for (const HeadAssignment& assignment : assignments)
    json.push_back({{"anchor", assignment.anchor},
                    {"layer", assignment.layer},
                    {"similarity", assignment.similarity},
                    {"assigned_similarity", assignment.assigned_similarity},
                    {"gain", assignment.assigned_similarity - assignment.similarity},
                    {"heads", assignment.heads}});
  return json;
}

Json spans_json(const ModelAnalysis& model) {
  if (model.dense_loss.items == 0) return nullptr;
  Json json;
  add_ratio(json, "dense_loss", model.dense_loss);
  json["target_tokens"] = static_cast<int64_t>(model.dense_loss.weight);
  json["candidates"] = plans_json(model.candidates);
  json["best_by_shared_layers"] = plans_json(model.frontier);
  json["allowed_loss_increase"] = model.allowed_increase ? Json(*model.allowed_increase) : Json(nullptr);
  json["suggested"] = model.suggested ? plan_json(model.frontier[*model.suggested]) : Json(nullptr);
  return json;
}

Json model_json(const ModelAnalysis& model) {
  Json json = {{"model", model.name}};
  if (model.step) json["step"] = *model.step;
  json["documents"] = model.documents;
  json["tokens"] = model.tokens;
  json["over_length"] = model.over_length;
  json["num_hidden_layers"] = model.config.num_hidden_layers;
  json["num_attention_heads"] = model.config.num_attention_heads;
  json["sharing"] = model.config.sharing.layers_text();
  if (!model.note.empty()) json["note"] = model.note;
  json["similarity"] = {{"layers", tensor_json(layer_similarity(model.cosines_LHLH))},
                        {"heads", tensor_json(head_similarity(model.cosines_LHLH))}};
  json["head_assignments"] = assignments_json(model.assignments);
  json["weighted_cumulative_variance"] =
      model.isotropy.documents > 0 ? Json{{"attention", tensor_json(model.isotropy.attention_LH.mean())},
                                          {"hidden_states", tensor_json(model.isotropy.hidden_states.mean())}}
                                   : Json(nullptr);
  json["spans"] = spans_json(model);
  return json;
}

/// Every key of the report whose name does not say all.
Json definitions() {
  return {
      {"documents, tokens", "what the model read; over_length: longer records that were left out"},
      {"similarity.layers", "[layer][layer]: mean over heads of similarity.heads"},
      {"similarity.heads",
       "[head][layer][layer]: mean over documents of <A, B> / (|A| |B|) of the attention weights of the same "
       "head"},
      {"head_assignments",
       "heads[h] of the anchor serves head h of the layer: the permutation with the greatest mean "
       "similarity. "
       "similarity: head for head; assigned_similarity: under the permutation; gain: the latter less the "
       "former. What it gains in loss stands with the spans"},
      {"weighted_cumulative_variance",
       "mean over documents of sum_k r_k (r_1 + ... + r_k) = (1 + sum_k r_k^2) / 2, r_k = share of variance "
       "of "
       "principal component k. attention: [layer][head], rows = queries, columns = keys; hidden_states: "
       "embedding and each layer's output, rows = tokens. 1 = one direction; lower = more isotropic; null = "
       "no "
       "document varies there"},
      {"spans.dense_loss", "mean -log p per target token of the model as it is; target_tokens: how many"},
      {"spans.candidates",
       "every span of 1 to --max-span layers; layers: as --sharing takes them; "
       "shared_layers: how many; anchor: the layer before"},
      {"spans.best_by_shared_layers",
       "the least loss_increase measured for each number of shared layers; of plans of several spans, those "
       "whose sum of single increases is least are measured"},
      {"spans.suggested",
       "the most layers within allowed_loss_increase (--loss-budget), or the best plan of --layers; null = "
       "none"},
      {"loss", "mean -log p per target token with attention shared directly, without training"},
      {"loss_increase", "loss less dense_loss, over the same documents; null = not a number"},
      {"assigned_heads_loss, assigned_heads_loss_increase",
       "the same with the anchor's heads as head_assignments has them"},
      {"assigned_heads_loss_gain", "loss less assigned_heads_loss: above 0 where assigning heads helps"},
      {"predicted_loss_increase", "of plans of several spans: the sum of their single loss_increase"},
      {"..._stderr", "standard error over documents (linearised ratio)"},
      {"saves.parameters", "q_proj and k_proj of shared layers"},
      {"saves.forward_flops_per_token", "at the documents' mean length; attention halved by causality"},
      {"saves.kv_cache_bytes_per_token", "K of shared layers, in the precision of the analysis"}};
}

}  // namespace

Json analysis_json(const AnalysisReport& report) {
  Json json = {{"data", report.data}};
  json.update(report.settings);
  json["definitions"] = definitions();
  json["models"] = Json::array();
  for (const ModelAnalysis& model : report.models) json["models"].push_back(model_json(model));
  return json;
}

std::string documents_text(const ModelAnalysis& model) {
  std::string text =
      fmt::format("{}, {}", counted(model.documents, "document"), counted(model.tokens, "token"));
  if (model.over_length > 0) text += fmt::format("; {} longer ones are left out", model.over_length);
  return text;
}

std::string model_title(const ModelAnalysis& model) {
  return model.step ? model.name + " step " + std::to_string(*model.step) : model.name;
}

}  // namespace satune
