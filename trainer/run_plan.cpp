#include "trainer/run_plan.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>

#include "data/files/error.h"
#include "evaluation/model_loader.h"
#include "trainer/device.h"

namespace satune {
namespace {

DataOptions data_options(const Settings& settings) {
  DataOptions options;
  options.train_file = settings.train_file;
  options.eval_file = settings.eval_file.value_or("");
  options.val_size = settings.val_size;
  options.seed = settings.seed;
  options.policy = {settings.max_length, settings.overlength, /*keep_empty_output=*/false};
  options.cache.columns = settings.columns;
  options.cache.directory = settings.token_cache_dir ? std::filesystem::path(*settings.token_cache_dir)
                                                     : default_token_cache_directory();
  options.cache.threads = static_cast<int>(settings.num_threads.value_or(usable_processors()));
  return options;
}

void check_positions(const Dataset& data, const ModelConfig& config) {
  if (data.summary().longest <= config.max_position_embeddings) return;
  throw bad_input(data.cache().data_file().string(),
                  fmt::format("a sample of {} tokens", data.summary().longest),
                  fmt::format("at most {}, the model's max_position_embeddings (set max_length)",
                              config.max_position_embeddings));
}

// Of a single record, such as a .txt file, val_size holds out nothing: fine unless something waits for it.
void check_evaluation_is_not_asked_for(const Settings& settings) {
  if (settings.val_size == 0) return;
  if (settings.patience || settings.keep_best) {
    throw bad_input(settings.patience ? "patience" : "keep_best",
                    fmt::format("nothing to evaluate on: {} holds one record", settings.train_file),
                    "an eval_file, or more records");
  }
  spdlog::warn("{} holds one record: val_size {} holds out nothing, and eval_loss is not measured",
               settings.train_file, settings.val_size);
}

/// Of both caches a folder that cannot be written says the same.
void log_notes(const TrainingData& data) {
  const std::string train = data.train.cache().note(), eval = data.eval ? data.eval->cache().note() : "";
  if (!train.empty()) spdlog::warn("{}", train);
  if (!eval.empty() && eval != train) spdlog::warn("{}", eval);
}

}  // namespace

RunPlan::RunPlan(Settings settings, int64_t world_size, std::optional<int64_t> rows_per_step)
    : settings_(std::move(settings)), world_size_(world_size) {
  naming_source(settings_, [&] {
    model_ = plan_model(settings_);
    plan_tokenizer();
    plan_data();
    plan_steps(rows_per_step);
  });
}

void RunPlan::plan_tokenizer() {
  tokenizer_ = load_model_tokenizer(model_.directory, model_.config);
  prompt_template_ = std::make_unique<PromptTemplate>(PromptTemplate::load(settings_.prompt_template));
  prompt_template_->check(*tokenizer_);
}

void RunPlan::plan_data() {
  TrainingData data = load_training_data(data_options(settings_), *tokenizer_, *prompt_template_);
  log_notes(data);
  check_positions(data.train, model_.config);
  const PlanOptions options{settings_.max_length, settings_.packing, settings_.shuffle, settings_.seed};
  train_ = std::make_unique<BatchSource>(std::move(data.train), options);
  if (!data.eval) return check_evaluation_is_not_asked_for(settings_);
  check_positions(*data.eval, model_.config);
  PlanOptions in_order = options;
  in_order.shuffle = false;
  eval_ = std::make_unique<BatchSource>(std::move(*data.eval), in_order);
}

void RunPlan::plan_steps(std::optional<int64_t> rows_per_step) {
  rows_per_step_ = rows_per_step.value_or(settings_.per_device_train_batch_size *
                                          settings_.gradient_accumulation_steps * world_size_);
  if (settings_.max_steps) {
    total_steps_ = *settings_.max_steps;
  } else {
    const double epochs = settings_.num_train_epochs.value_or(1.0);
    const auto whole = static_cast<int64_t>(std::floor(epochs));
    for (int64_t epoch = 0; epoch < whole; ++epoch) total_steps_ += steps_of_epoch(epoch);
    const double rest = epochs - static_cast<double>(whole);
    if (rest > 0) {
      total_steps_ +=
          static_cast<int64_t>(std::ceil(rest * static_cast<double>(steps_of_epoch(whole)) - 1e-9));
    }
  }
  warmup_steps_ = warmup_step_count(settings_, total_steps_);
}

int64_t RunPlan::steps_of_epoch(int64_t epoch) {
  return (train_->rows(epoch) + rows_per_step_ - 1) / rows_per_step_;
}

int64_t RunPlan::epoch_of_step(int64_t step) {
  while (epoch_starts_.back() <= step) {
    const auto epoch = static_cast<int64_t>(epoch_starts_.size()) - 1;
    epoch_starts_.push_back(epoch_starts_.back() + steps_of_epoch(epoch));
  }
  const auto next = std::upper_bound(epoch_starts_.begin(), epoch_starts_.end(), step);
  return static_cast<int64_t>(next - epoch_starts_.begin()) - 1;
}

StepPosition RunPlan::position(int64_t step) {
  const int64_t epoch = epoch_of_step(step);
  const int64_t first_row = (step - epoch_starts_[static_cast<size_t>(epoch)]) * rows_per_step_;
  return {epoch, first_row, std::min(rows_per_step_, train_->rows(epoch) - first_row)};
}

double RunPlan::epochs_after(int64_t steps) {
  const int64_t epoch = epoch_of_step(steps);
  const int64_t done = steps - epoch_starts_[static_cast<size_t>(epoch)];
  return static_cast<double>(epoch) + static_cast<double>(done) / static_cast<double>(steps_of_epoch(epoch));
}

double RunPlan::epochs_of_run() {
  constexpr double kWalked = 1000;
  const double guess = static_cast<double>(total_steps_) / static_cast<double>(steps_of_epoch(0));
  return guess > kWalked ? guess : epochs_after(total_steps_);
}

}  // namespace satune
