// The model of a run as its settings and headers tell it: no weight is read, no data.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "model/files/model_config.h"
#include "model/files/tensor_table.h"
#include "trainer/memory_plan.h"
#include "trainer/settings.h"

namespace satune {

struct ModelPlan {
  std::filesystem::path directory;  ///< or the architecture's file
  ModelConfig config;               ///< with the run's sharing plan
  TensorTable table;
  /// The checkpoint has q_proj and k_proj of layers that this run shares: load_weights() leaves them out.
  bool dense_source = false;
  std::vector<bool> trained_mask;  ///< per tensor of the table

  int64_t trained_parameters() const;
};

/// Reads config.json and checks every tensor's name, shape and dtype. Throws BadInput, also for a sharing
/// plan that contradicts the checkpoint's.
ModelPlan plan_model(const Settings& settings);

/// The same where model_name_or_path may also be a JSON file with the keys of a config.json, as `satune init`
/// takes it: then there are no tensors to check.
ModelPlan plan_model_or_architecture(const Settings& settings);

/// What the memory plan takes of a run of full rows. `model` and `settings` must outlive it.
PlannedRun planned_run(const ModelPlan& model, const Settings& settings, bool on_card, int64_t threads);

/// The architecture alone, of such a file or of a model directory's config.json, which is all that is read.
/// `layers`: instead of its own number of them (of the first ones, where it has a sharing plan).
/// `sharing_key`: the option or setting that gave the sharing plan, for errors.
ModelPlan plan_architecture(const Settings& settings, std::optional<int64_t> layers,
                            std::string_view sharing_key);

}  // namespace satune
