#include "trainer/training_run.h"

#include <ATen/ATen.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "data/files/error.h"
#include "trainer/device.h"
#include "trainer/evaluation_loss.h"
#include "trainer/final_export.h"
#include "trainer/memory_plan.h"
#include "trainer/resume.h"
#include "trainer/snapshot_writer.h"

namespace satune {
namespace {

at::ScalarType weight_type(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return at::kFloat;
    case Precision::kFp16:
      return at::kHalf;
    case Precision::kBf16:
      break;
  }
  return at::kBFloat16;
}

std::vector<Recording> recording_of(const RunPlan& plan, const at::Device& device) {
  const Settings& settings = plan.settings();
  return plan_memory(settings, plan.config(), plan.table(), plan.trained_mask(),
                     settings.per_device_train_batch_size * settings.max_length, available_memory(device))
      .recording;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TrainingRun::TrainingRun(RunPlan& plan, RunFolder& folder, const SnapshotStore& store,
                         const SnapshotReader* snapshot, const at::Device& device, SignalWatch& signals,
                         const TrainOptions& options)
    : plan_(plan),
      settings_(plan.settings()),
      folder_(folder),
      store_(store),
      signals_(signals),
      ops_(*options.file_ops),
      device_(device),
      machine_(machine_json(device)),
      recording_(recording_of(plan, device)),  // while the device is still empty
      model_(plan.config(), plan.trained_mask(), weight_type(settings_.precision), device),
      schedule_(settings_, plan.warmup_steps(), plan.total_steps()),
      hooks_(signals),
      device_metrics_(plan, device, 1) {
  load_weights_and_state(snapshot);
  step_.emplace(model_, *optimizer_, plan_.train(), settings_, recording_);
  metrics_.emplace(folder_.path(), state_.unlogged ? state_.step - 1 : state_.step, ops_);
  progress_.emplace(plan_.total_steps(), settings_.logging_steps);
  last_save_ = Clock::now();
}

void TrainingRun::load_weights_and_state(const SnapshotReader* snapshot) {
  const Checkpoint base(plan_.model_directory());
  load_weights(model_.weights(), base, plan_.dense_source());
  frozen_ = frozen_checksums(base, plan_.table(), plan_.trained_mask());
  optimizer_.emplace(model_.weights().trained, AdamWOptions(settings_));
  state_.loss_scale = LossScale::initial(settings_.precision);
  if (snapshot == nullptr) return;
  if (snapshot->state().at("frozen") != frozen_) {
    throw bad_input(plan_.model_directory().string(), "frozen tensors with other checksums",
                    "those that " + snapshot->folder().string() + " was trained with");
  }
  state_ = parse_run_state(snapshot->state().at("progress"), (snapshot->folder() / kStateFile).string());
  restore_optimizer(*optimizer_, *snapshot);
  std::error_code missing;
  if (std::filesystem::equivalent(snapshot->folder(), store_.path_of(state_.step), missing)) {
    saved_step_ = state_.step;
  }
  spdlog::info("continuing after step {} of {} from {}", state_.step, plan_.total_steps(),
               snapshot->folder().string());
}

bool TrainingRun::finished() const {
  return state_.step >= plan_.total_steps() || state_.stopped_early;
}

ExitCode TrainingRun::train() {
  signals_.defer_stop();
  try {
    if (state_.unlogged) after_step();
    while (!finished()) {
      if (signals_.stop_requested()) throw Interrupted();
      one_step();
      after_step();
    }
    save();
  } catch (const Interrupted&) {
    save(true);
    clear_for_log();
    spdlog::warn("{}: saved step {}; the run can be continued", signals_.stop_signal_name(), state_.step);
    return kExitResumable;
  }
  signals_.end_at_once();
  return signals_.stop_requested() ? kExitResumable : kExitOk;
}

void TrainingRun::one_step() {
  const auto start = Clock::now();
  const StepPosition position = plan_.position(state_.step);
  const double learning_rate = schedule_.learning_rate(state_.step);
  const StepResult result =
      step_->run(position, learning_rate, state_.updates + 1, hooks_, state_.loss_scale.value);
  if (result.updated) state_.loss_scale.succeed(settings_.precision);
  if (!result.finite) note_nonfinite(position, result);

  stepped_ = true;
  ++state_.step;
  state_.updates += result.updated ? 1 : 0;
  state_.num_tokens += result.tokens;
  state_.num_samples += result.samples;
  state_.target_tokens += result.targets;

  StepMetrics metrics;
  metrics.step = state_.step;
  metrics.loss = result.loss;
  metrics.grad_norm = result.grad_norm;
  metrics.learning_rate = learning_rate;
  metrics.epoch = plan_.epochs_after(state_.step);
  metrics.num_tokens = state_.num_tokens;
  metrics.mean_token_accuracy = result.accuracy;
  metrics.step_seconds = seconds_since(start);
  metrics.tokens_per_s = static_cast<double>(result.tokens) / metrics.step_seconds;
  metrics.peak_memory_bytes = peak_memory_bytes(device_);
  device_metrics_.fill(metrics, static_cast<double>(result.tokens) / std::max<int64_t>(1, result.samples));
  state_.unlogged = metrics;
}

void TrainingRun::after_step() {
  const bool best_before = state_.best_step == state_.step;
  evaluate_and_log();
  const bool new_best = state_.best_step == state_.step && !best_before;
  if (save_due() || (settings_.keep_best && new_best)) save();
  if (settings_.export_every_epoch && epoch_ended()) {
    const auto epoch = static_cast<int64_t>(std::llround(plan_.epochs_after(state_.step)));
    export_run(folder_.exported_epoch(epoch), plan_, model_, *optimizer_);
  }
}

bool TrainingRun::evaluation_due() const {
  if (plan_.eval() == nullptr) return false;
  return state_.step == plan_.total_steps() ||
         (settings_.eval_steps > 0 && state_.step % settings_.eval_steps == 0);
}

void TrainingRun::evaluate_and_log() {
  StepMetrics metrics = *state_.unlogged;
  if (evaluation_due()) {
    metrics.eval_loss = evaluation_loss(model_, *plan_.eval(), settings_.per_device_train_batch_size, hooks_);
    note_evaluation(*metrics.eval_loss);
  }
  state_.unlogged.reset();
  metrics_->record(metrics);
  progress_->step(metrics);
}

void TrainingRun::note_evaluation(double loss) {
  if (std::isfinite(loss) && (!state_.best_eval_loss || loss < *state_.best_eval_loss)) {
    state_.best_eval_loss = loss;
    state_.best_step = state_.step;
    state_.evaluations_without_gain = 0;
    return;
  }
  ++state_.evaluations_without_gain;
  if (settings_.patience && state_.evaluations_without_gain >= *settings_.patience && !finished()) {
    state_.stopped_early = true;
    clear_for_log();
    spdlog::info(
        "eval_loss has not fallen for {} evaluations: stopping after step {}; best was {} at step {}",
        state_.evaluations_without_gain, state_.step, state_.best_eval_loss.value_or(std::nan("")),
        state_.best_step);
  }
}

bool TrainingRun::save_due() {
  if (signals_.take_save_request()) return true;
  if (settings_.save_steps > 0 && state_.step % settings_.save_steps == 0) return true;
  return settings_.save_minutes > 0 && seconds_since(last_save_) >= settings_.save_minutes * 60;
}

void TrainingRun::save(bool resumable) {
  if (saved_step_ == state_.step) return;
  const auto folder = store_.path_of(state_.step);
  // Newer complete snapshots were refused at the start: what stands here is damaged.
  if (std::filesystem::exists(folder)) store_.set_aside(folder);
  const bool only_model = settings_.save_only_model && !resumable;
  write_snapshot(folder, *optimizer_, state_json(), state_.step, only_model, ops_);
  saved_step_ = state_.step;
  last_save_ = Clock::now();
  store_.prune(std::max<int64_t>(1, settings_.save_total_limit), settings_.keep_best ? state_.best_step : 0);
}

Json TrainingRun::state_json() const {
  const StepPosition next = plan_.position(state_.step);
  return {{"format", "satune-snapshot"},
          {"version", 1},
          {"progress", run_state_json(state_)},
          {"data_position", {{"epoch", next.epoch}, {"row", next.first_row}}},
          {"data_fingerprint", plan_.train().fingerprint()},
          // Every draw is keyed by (seed, purpose, index): there is no generator whose state could be lost.
          {"random", {{"seed", settings_.seed}}},
          {"world", {{"size", optimizer_->world().size}}},
          {"machine", machine_},
          {"base_model", std::filesystem::absolute(plan_.model_directory()).string()},
          {"frozen", frozen_},
          {"model", model_config_json(plan_.config())},
          {"settings", settings_json(settings_)}};
}

void TrainingRun::note_nonfinite(const StepPosition& position, const StepResult& result) {
  if (std::isfinite(result.loss) && state_.loss_scale.back_off(settings_.precision)) {
    ++state_.overflow_steps;
    return;
  }
  if (settings_.nonfinite == NonFinitePolicy::kStop) stop_at_nonfinite(position, result);
  ++state_.skipped_steps;
  clear_for_log();
  spdlog::warn("step {}: loss {}, gradient norm {}: update skipped ({} so far)", state_.step + 1, result.loss,
               result.grad_norm, state_.skipped_steps);
}

void TrainingRun::stop_at_nonfinite(const StepPosition& position, const StepResult& result) {
  constexpr size_t kNamed = 20;
  std::vector<int64_t> records = step_->find_nonfinite_records(position, hooks_);
  const size_t count = records.size();
  records.resize(std::min(count, kNamed));
  save(true);
  throw std::runtime_error(
      fmt::format("step {}: loss {}, gradient norm {}; records of {} that show it alone: {}{}; the state "
                  "before this step "
                  "is saved in {} (nonfinite \"skip\" would leave such steps out)",
                  state_.step + 1, result.loss, result.grad_norm, settings_.train_file,
                  count == 0 ? "none" : fmt::format("{}", fmt::join(records, ", ")),
                  count > kNamed ? fmt::format(" and {} more", count - kNamed) : "",
                  store_.path_of(state_.step).string()));
}

bool TrainingRun::epoch_ended() {
  const StepPosition done = plan_.position(state_.step - 1);
  return done.first_row + done.rows >= plan_.train().rows(done.epoch);
}

void TrainingRun::finish() {
  if (settings_.export_at_end && (stepped_ || !std::filesystem::exists(folder_.exported()))) {
    export_run(folder_.exported(), plan_, model_, *optimizer_);
    clear_for_log();
    spdlog::info("exported to {}", folder_.exported().string());
  }
}

void TrainingRun::clear_for_log() {
  progress_->clear();
}

}  // namespace satune
