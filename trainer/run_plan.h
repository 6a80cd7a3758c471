// What a run will do, known before any weight is loaded: model shape, tokenizer, data, and the position of
// every step in the data. Training and --dry-run both start from it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/batches.h"
#include "data/prompt_template.h"
#include "data/tokenizer.h"
#include "trainer/model_plan.h"
#include "trainer/settings.h"

namespace satune {

/// The rows of one step: [first_row, first_row + rows) of an epoch (0-based).
struct StepPosition {
  int64_t epoch = 0;
  int64_t first_row = 0;
  int64_t rows = 0;
};

class RunPlan {
 public:
  /// Reads config.json, checks every tensor's name, shape and dtype (headers only), the tokenizer against the
  /// vocabulary, the template against the tokenizer, then tokenises or maps the data. No weight is read.
  /// Throws BadInput (also for a sharing plan that contradicts the checkpoint's, a warm-up not shorter than
  /// the run, a sample longer than max_position_embeddings). `rows_per_step`: of the run that is continued,
  /// which keeps its global batch whatever the number of ranks; unset = batch size x accumulation x ranks.
  explicit RunPlan(Settings settings, int64_t world_size = 1,
                   std::optional<int64_t> rows_per_step = std::nullopt);

  const Settings& settings() const { return settings_; }
  const ModelPlan& model() const { return model_; }
  const std::filesystem::path& model_directory() const { return model_.directory; }
  /// With the run's sharing plan.
  const ModelConfig& config() const { return model_.config; }
  const TensorTable& table() const { return model_.table; }
  /// The checkpoint has q_proj and k_proj of layers that this run shares: load_weights() leaves them out.
  bool dense_source() const { return model_.dense_source; }
  /// Per tensor of the table: trained?
  const std::vector<bool>& trained_mask() const { return model_.trained_mask; }
  int64_t trained_parameters() const { return model_.trained_parameters(); }

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const PromptTemplate& prompt_template() const { return *prompt_template_; }
  BatchSource& train() { return *train_; }
  /// nullptr where nothing is held out. File order, packed as the training rows are.
  BatchSource* eval() { return eval_.get(); }
  const DatasetSummary& train_summary() const { return train_->dataset().summary(); }

  /// Ranks the run is planned for.
  int64_t world_size() const { return world_size_; }
  /// Rows of a full step, over all ranks.
  int64_t rows_per_step() const { return rows_per_step_; }
  int64_t total_steps() const { return total_steps_; }
  int64_t warmup_steps() const { return warmup_steps_; }
  /// Of step 0, 1, ... (0-based: the step that leads from `step` finished steps to `step` + 1). The last step
  /// of an epoch has fewer rows where they do not divide. Walks epochs; cheap after the first call.
  StepPosition position(int64_t step);
  int64_t steps_of_epoch(int64_t epoch);
  /// Epochs completed after `steps` steps, as a fraction of the epoch in progress.
  double epochs_after(int64_t steps);
  /// Of all steps; beyond a thousand epochs a guess from the first, which does not walk them.
  double epochs_of_run();

 private:
  void plan_tokenizer();
  void plan_data();
  void plan_steps(std::optional<int64_t> rows_per_step);
  int64_t epoch_of_step(int64_t step);

  Settings settings_;
  int64_t world_size_;
  ModelPlan model_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<PromptTemplate> prompt_template_;
  std::unique_ptr<BatchSource> train_, eval_;
  int64_t rows_per_step_ = 0, total_steps_ = 0, warmup_steps_ = 0;
  std::vector<int64_t> epoch_starts_ = {0};  ///< first step of every epoch walked so far
};

}  // namespace satune
