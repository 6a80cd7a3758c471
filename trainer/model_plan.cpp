#include "trainer/model_plan.h"

#include <fmt/format.h>

#include "data/files/error.h"
#include "data/files/json.h"
#include "evaluation/model_loader.h"
#include "model/files/hf_directory.h"
#include "model/parameters.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kSharingLayers = "sharing.layers";

void settle(ModelPlan& plan, const Settings& settings, const fs::path& config_file,
            std::string_view sharing_key = kSharingLayers) {
  if (!settings.sharing_layers.empty()) {
    const auto layers = static_cast<int>(plan.config.num_hidden_layers);
    plan.dense_source = adopt_sharing(
        plan.config,
        SharingPlan::parse(settings.sharing_layers, settings.sharing_anchor, layers, sharing_key),
        sharing_key, config_file.string());
  }
  plan.table = TensorTable(plan.config);
  plan.trained_mask = match_unfrozen(plan.table, settings.unfrozen_parameters);
  if (settings.fp8 && fp8_parameters(plan.table) == 0)
    throw bad_input("fp8", "no projection of the model with sizes that are multiples of 16", "false");
}

}  // namespace

int64_t ModelPlan::trained_parameters() const {
  int64_t count = 0;
  for (size_t i = 0; i < trained_mask.size(); ++i) {
    if (trained_mask[i]) count += table.tensors()[i].numel();
  }
  return count;
}

ModelPlan plan_model(const Settings& settings) {
  ModelPlan plan;
  plan.directory = resolve_model_directory(settings.model_name_or_path);
  plan.config = read_model_config(plan.directory);
  settle(plan, settings, plan.directory / "config.json");
  check_checkpoint(Checkpoint(plan.directory), plan.table, plan.dense_source);  // loading tells what it skips
  return plan;
}

ModelPlan plan_model_or_architecture(const Settings& settings) {
  std::error_code error;
  if (!fs::is_regular_file(settings.model_name_or_path, error)) return plan_model(settings);
  return plan_architecture(settings, std::nullopt, kSharingLayers);
}

ModelPlan plan_architecture(const Settings& settings, std::optional<int64_t> layers,
                            std::string_view sharing_key) {
  ModelPlan plan;
  std::error_code error;
  plan.directory = fs::is_regular_file(settings.model_name_or_path, error)
                       ? fs::path(settings.model_name_or_path)
                       : resolve_model_directory(settings.model_name_or_path) / "config.json";
  Json architecture = read_json_file(plan.directory, {.allow_comments = true});
  if (!architecture.is_object()) {
    throw bad_input(plan.directory.string(), describe_json(&architecture), "an object, as a config.json");
  }
  if (!architecture.contains("model_type")) architecture["model_type"] = "llama";
  if (layers) architecture["num_hidden_layers"] = *layers;
  plan.config = parse_model_config(architecture, plan.directory.string());
  settle(plan, settings, plan.directory, sharing_key);
  return plan;
}

PlannedRun planned_run(const ModelPlan& model, const Settings& settings, bool on_card, int64_t threads) {
  return {settings,
          model.config,
          model.table,
          model.trained_mask,
          settings.per_device_train_batch_size * settings.max_length,
          on_card,
          threads};
}

}  // namespace satune
