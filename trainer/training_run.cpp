#include "trainer/training_run.h"

#include <ATen/ATen.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <utility>

#include "data/files/counted.h"
#include "data/files/error.h"
#include "trainer/collective.h"
#include "trainer/compute_types.h"
#include "trainer/data_statistics.h"
#include "trainer/device.h"
#include "trainer/evaluation_loss.h"
#include "trainer/final_export.h"
#include "trainer/model_modes.h"
#include "trainer/resume.h"
#include "trainer/snapshot_writer.h"
#include "trainer/trained_text.h"

namespace satune {
namespace {

void report_fp8(const Llama::Projections& projections) {
  const int64_t left = projections.all - projections.take_fp8;
  spdlog::log(left == 0 ? spdlog::level::info : spdlog::level::warn, "fp8: {} of the layers' {} products{}",
              projections.take_fp8, projections.all,
              left == 0 ? "" : fmt::format("; {} stay bf16, their sizes are not multiples of 16", left));
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TrainingRun::TrainingRun(RunPlan& plan, const RunFolder& folder, const SnapshotStore& store,
                         const SnapshotReader* snapshot, const at::Device& device, SignalWatch& signals,
                         Ranks& ranks, FileOps& ops, int64_t local_ranks)
    : plan_(plan),
      settings_(plan.settings()),
      folder_(folder),
      store_(store),
      signals_(signals),
      ranks_(ranks),
      coordinator_(ranks.coordinator()),
      ops_(ops),
      local_ranks_(local_ranks),
      device_(device),
      machine_(run_machine_json(device, ranks.world())),
      attention_(choose_attention(settings_, plan.config(), device)),
      memory_(choose_memory(plan, device, attention_.choice.kernel, ranks, local_ranks)),
      model_(plan.config(), plan.trained_mask(), weight_type(settings_.precision), device,
             parameter_layout(memory_.zero_stage, ranks.world().size)),
      schedule_(settings_, plan.warmup_steps(), plan.total_steps()) {
  model_.attend_by(attention_.choice);
  if (ranks.is_leader() || !attention_.first) log_attention(attention_);
  use_fp8(model_, settings_, memory_.zero_stage);
  if (settings_.fp8 && ranks.is_leader()) report_fp8(model_.projections());
  if (!offload_activations(model_, settings_) && settings_.activation_offloading && ranks.is_leader())
    spdlog::info("activation_offloading: nothing to move, the model is in host memory");
  sharding_.emplace(model_, ranks.groups(), coordinator_, memory_.zero_stage,
                    gradient_type(settings_, ranks.world()));
  const bool offload = settings_.optimizer_offload == OptimizerOffload::kCpu;
  optimizer_.emplace(model_.weights().trained, sharding_->weight_shards(), AdamWOptions(settings_),
                     sharding_->optimizer_owner(), offload ? at::Device(at::kCPU) : device);
  load_weights_and_state(snapshot);
  step_.emplace(model_, *sharding_, *optimizer_, ranks.groups(), coordinator_, plan_.train(), settings_,
                memory_.recording);
  if (ranks.is_leader()) {
    const int64_t logged = state_.unlogged ? state_.step - 1 : state_.step;
    metrics_.emplace(folder_.path(), logged, ops_);
    open_samples(logged);
    device_metrics_.emplace(plan, device, ranks.world().size);
    progress_.emplace(plan_.total_steps(), settings_.logging_steps);
  }
  check_room_for_copy();
  last_save_ = Clock::now();
}

void TrainingRun::load_weights_and_state(const SnapshotReader* snapshot) {
  const Checkpoint base(plan_.model_directory());
  if (ranks_.is_leader()) frozen_ = frozen_checksums(base, plan_.table(), plan_.trained_mask());
  state_.loss_scale = LossScale::initial(settings_.precision);
  if (snapshot == nullptr) {
    report_unused_tensors(base, plan_.table(), plan_.dense_source());
    load_pretrained(*optimizer_, *sharding_, base);
    sharding_->publish_weights();
    return;
  }
  if (ranks_.is_leader() && snapshot->state().at("frozen") != frozen_) {
    throw bad_input(plan_.model_directory().string(), "frozen tensors with other checksums",
                    "those that " + snapshot->folder().string() + " was trained with");
  }
  state_ = parse_run_state(snapshot->state().at("progress"), (snapshot->folder() / kStateFile).string());
  // The patience of now decides.
  state_.stopped_early = settings_.patience && state_.evaluations_without_gain >= *settings_.patience;
  restore_optimizer(*optimizer_, *snapshot);
  load_frozen(*sharding_, base, plan_.table());
  sharding_->publish_weights();
  std::error_code missing;
  if (std::filesystem::equivalent(snapshot->folder(), store_.path_of(state_.step), missing)) {
    saved_step_ = state_.step;
    saved_resumable_ = true;
  }
  spdlog::info("continuing after step {} of {} from {}", state_.step, plan_.total_steps(),
               snapshot->folder().string());
}

void TrainingRun::open_samples(int64_t last_step) {
  // Whether or not there will be new ones: no row stays of a step that is done again.
  if (settings_.eval_samples == 0) {
    cut_eval_samples(folder_.path(), last_step, ops_);
    return;
  }
  const bool several = ranks_.world().size > 1;
  if (memory_.zero_stage >= 3 && several) {
    spdlog::warn("eval_samples: no samples are written: in zero_stage 3 no rank has the whole model");
    cut_eval_samples(folder_.path(), last_step, ops_);
    return;
  }
  const double most_seconds = several ? kSamplesShareOfTimeout * static_cast<double>(settings_.ddp_timeout)
                                      : std::numeric_limits<double>::infinity();
  samples_.emplace(plan_, folder_.path(), last_step, most_seconds, ops_);
}

bool TrainingRun::samples_must_end() const {
  return coordinator_.stopping() || coordinator_.failure_code() != 0;
}

bool TrainingRun::finished() const {
  return state_.step >= plan_.total_steps() || state_.stopped_early;
}

void TrainingRun::profile(int64_t steps) {
  profile_.emplace(steps, folder_.path(), device_, coordinator_, ops_);
}

ExitCode TrainingRun::train() {
  ranks_.defer_stop();
  try {
    if (state_.unlogged) {
      after_step();
    } else if (samples_) {
      coordinator_.at_phase("samples");
      samples_->finish(model_, state_.step, [this] { return samples_must_end(); });
    }
    export_epoch();
    rehearse();
    while (!finished()) {
      coordinator_.at_step(state_.step + 1);
      coordinator_.checkpoint();
      if (profile_) profile_->before_step(plan_.total_steps() - state_.step);
      one_step();
      after_step();
      if (profile_) {
        profile_->after_step();
        step_end_.reset();
      }
    }
    save();
  } catch (const Interrupted&) {
    if (profile_) profile_->write();
    save(SaveBy::kNow, /*resumable=*/true);
    clear_for_log();
    spdlog::warn("{}: saved step {}; the run can be continued", coordinator_.stop_reason(), state_.step);
    return kExitResumable;
  }
  if (state_.skipped_steps > 0) {
    clear_for_log();
    spdlog::warn("{} of {} skipped: the loss or the gradient norm was not finite", state_.skipped_steps,
                 counted(state_.step, "step"));
  }
  // All ranks go on to the export, or none does.
  if (any_rank_stops()) return kExitResumable;
  ranks_.end_at_once("all steps are done; the same command completes the run");
  return kExitOk;
}

bool TrainingRun::any_rank_stops() {
  const double mine[] = {signals_.stop_requested() ? 1.0 : 0.0};
  const std::vector<double> all = in_collective(coordinator_, "exchange after the last save",
                                                [&] { return ranks_.groups().all.exchange(mine); });
  return std::any_of(all.begin(), all.end(), [](double stops) { return stops > 0; });
}

void TrainingRun::rehearse() {
  if (finished()) return;
  coordinator_.at_step(state_.step + 1);
  step_->rehearse(plan_.position(state_.step).epoch);
}

void TrainingRun::one_step() {
  const TracedPart part(coordinator_.trace(), "step {}", state_.step + 1);
  // With several cards the update goes on behind its step, and what comes after waits for it: the time from
  // the end of one step to the next has all of it, where nothing else was done between.
  const auto start = std::exchange(step_end_, {}).value_or(Clock::now());
  const StepPosition position = plan_.position(state_.step);
  const double learning_rate = schedule_.learning_rate(state_.step);
  const Traffic before = ranks_.traffic();
  const StepResult result = step_->run(position, learning_rate, state_.updates + 1, state_.loss_scale.value);
  const auto end = Clock::now();
  if (result.finite) step_end_ = end;
  const Traffic after = ranks_.traffic();
  if (result.updated) state_.loss_scale.succeed(settings_.precision);
  if (!result.finite) note_nonfinite(position, result);

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
  metrics.step_seconds = std::chrono::duration<double>(end - start).count();
  metrics.tokens_per_s = static_cast<double>(result.tokens) / metrics.step_seconds;
  metrics.peak_memory_bytes = peak_memory_bytes(device_);
  if (ranks_.world().size > 1) {
    metrics.sent_reduced_bytes = static_cast<double>(after.reduced - before.reduced);
    metrics.sent_gathered_bytes = static_cast<double>(after.gathered - before.gathered);
    metrics.sent_other_bytes = static_cast<double>(after.other - before.other);
  }
  if (device_metrics_) {
    device_metrics_->fill(metrics, static_cast<double>(result.tokens) / std::max<int64_t>(1, result.samples));
  }
  state_.unlogged = metrics;
}

void TrainingRun::after_step() {
  const bool best_before = state_.best_step == state_.step;
  const Votes votes = vote();
  state_.unlogged->peak_memory_bytes = votes.peak_memory_bytes;
  evaluate_and_log();
  const bool new_best = state_.best_step == state_.step && !best_before;
  const bool periodic = settings_.save_steps > 0 && state_.step % settings_.save_steps == 0;
  if (votes.save || periodic || (settings_.keep_best && new_best)) save(SaveBy::kLater);
  export_epoch();
}

TrainingRun::Votes TrainingRun::vote() {
  background_.check();
  const bool asked = signals_.take_save_request();
  // One clock decides, or ranks would not agree on the step.
  const bool due = ranks_.is_leader() && settings_.save_minutes > 0 &&
                   seconds_since(last_save_) >= settings_.save_minutes * 60;
  const double mine[] = {asked || due ? 1.0 : 0.0, static_cast<double>(peak_memory_bytes(device_))};
  const std::vector<double> all = in_collective(coordinator_, "exchange after a step",
                                                [&] { return ranks_.groups().all.exchange(mine); });
  Votes votes;
  for (size_t i = 0; i < all.size(); i += std::size(mine)) {
    votes.save = votes.save || all[i] > 0;
    votes.peak_memory_bytes = std::max(votes.peak_memory_bytes, static_cast<int64_t>(all[i + 1]));
  }
  return votes;
}

bool TrainingRun::evaluation_due() const {
  if (plan_.eval() == nullptr) return false;
  return state_.step == plan_.total_steps() ||
         (settings_.eval_steps > 0 && state_.step % settings_.eval_steps == 0);
}

void TrainingRun::evaluate_and_log() {
  StepMetrics metrics = *state_.unlogged;
  if (evaluation_due()) {
    const TracedPart part(coordinator_.trace(), "evaluation");
    step_end_.reset();
    metrics.eval_loss = evaluation_loss(model_, *plan_.eval(), settings_.per_device_train_batch_size,
                                        ranks_.groups().all, coordinator_, *sharding_);
    note_evaluation(*metrics.eval_loss);
    if (samples_) {
      coordinator_.at_phase("samples");
      samples_->write(model_, state_.step, [this] { return samples_must_end(); });
    }
  }
  state_.unlogged.reset();
  if (metrics_) metrics_->record(metrics);
  if (progress_) progress_->step(metrics);
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

void TrainingRun::save(SaveBy by, bool resumable) {
  step_end_.reset();
  background_.wait();
  const bool only_model = settings_.save_only_model && !resumable;
  if (saved_step_ == state_.step && (saved_resumable_ || only_model)) return;
  coordinator_.at_phase("save");
  const TracedPart part(coordinator_.trace(), "snapshot");
  make_room_for_snapshot();
  const SnapshotShare share{sharding_->world(), sharding_->saves(), ++saves_};
  const auto write =
      [this, share, folder = store_.path_of(state_.step), step = state_.step, best_step = state_.best_step,
       only_model, state = ranks_.is_leader() ? state_json() : Json::object()](const SnapshotSource& source) {
        write_snapshot(folder, source, share, coordinator_, state, step, only_model, ops_);
        if (ranks_.is_leader()) prune_snapshots(best_step);
      };
  if (by == SaveBy::kLater && settings_.async_save) {
    // Who writes nothing needs no copy.
    const auto copy = share.writes ? std::make_shared<StateCopy>(*optimizer_, share.world) : nullptr;
    background_.start([write, copy, this] { write(copy ? copy->source() : source_of(*optimizer_)); });
  } else {
    write(source_of(*optimizer_));
  }
  saved_step_ = state_.step;
  saved_resumable_ = !only_model;
  last_save_ = Clock::now();
}

void TrainingRun::make_room_for_snapshot() {
  const auto folder = store_.path_of(state_.step);
  if (!ranks_.is_leader() || !std::filesystem::exists(folder)) return;
  // One of ours without optimizer state stays until a whole one takes its place. Anything else is damaged:
  // newer complete snapshots were refused at the start.
  if (saved_step_ != state_.step) store_.set_aside(folder);
}

void TrainingRun::prune_snapshots(int64_t best_step) const {
  store_.prune(std::max<int64_t>(1, settings_.save_total_limit), settings_.keep_best ? best_step : 0);
}

void TrainingRun::check_room_for_copy() const {
  if (!settings_.async_save) return;
  // Every rank has allocated what it keeps, but for activations, which the first pass pins; and all ranks of
  // the machine make their copies at one time.
  coordinator_.barrier("allocated");
  const int64_t first_here = ranks_.world().rank / local_ranks_ * local_ranks_;
  // Of the groups that each hold the model the first saves it.
  const int64_t saving = std::clamp<int64_t>(sharding_->world().size - first_here, 0, local_ranks_);
  const int64_t needed =
      saving * StateCopy::bytes(*optimizer_, sharding_->world()) + memory_.host_activations * local_ranks_;
  const int64_t available = available_memory(at::kCPU);
  if (needed <= available) return;
  throw EnvironmentError(
      fmt::format("async_save: found {} of memory available, expected {} for copies of the state of the {} "
                  "on this machine{} (async_save=false saves without them)",
                  format_bytes(static_cast<double>(available)), format_bytes(static_cast<double>(needed)),
                  local_ranks_ == 1 ? std::string("process") : fmt::format("{} processes", local_ranks_),
                  memory_.host_activations > 0 ? " and for offloaded activations" : ""));
}

Json TrainingRun::state_json() const {
  const StepPosition next = plan_.position(state_.step);
  Json state = {
      {"format", "satune-snapshot"},
      {"version", 1},
      {"progress", run_state_json(state_)},
      {"data_position", {{"epoch", next.epoch}, {"row", next.first_row}}},
      {"data_fingerprint", plan_.train().fingerprint()},
      // Whatever the order: what runs of several seeds have in common. For satune compare.
      {"texts", text_fingerprints(plan_)},
      // Every draw is keyed by (seed, purpose, index): there is no generator whose state could be lost.
      {"random", {{"seed", settings_.seed}}},
      {"rows_per_step", plan_.rows_per_step()},
      {"world",
       {{"size", ranks_.world().size},
        {"zero_stage", memory_.zero_stage},
        {"shard_group_size", sharding_->world().size}}},
      {"machine", machine_},
      {"base_model", std::filesystem::absolute(plan_.model_directory()).string()},
      {"frozen", frozen_},
      {"model", model_config_json(plan_.config())},
      {"settings", settings_json(settings_)}};
  add_trained_text(state, trained_text(plan_));
  return state;
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
  const std::vector<NonFiniteRecord> found = step_->find_nonfinite_records(position);
  std::vector<std::string> names;
  for (const NonFiniteRecord& bad : std::span(found).first(std::min(found.size(), kNamed))) {
    names.push_back(ranks_.world().size == 1 ? std::to_string(bad.record)
                                             : fmt::format("{} (rank {})", bad.record, bad.rank));
  }
  save(SaveBy::kNow, /*resumable=*/true);
  throw std::runtime_error(
      fmt::format("step {}: loss {}, gradient norm {}; records of {} that show it alone: {}{}; the state "
                  "before this step "
                  "is saved in {} (nonfinite \"skip\" would leave such steps out)",
                  state_.step + 1, result.loss, result.grad_norm, settings_.train_file,
                  names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")),
                  found.size() > kNamed ? fmt::format(" and {} more", found.size() - kNamed) : "",
                  store_.path_of(state_.step).string()));
}

bool TrainingRun::epoch_ended() const {
  if (state_.step == 0) return false;
  const StepPosition done = plan_.position(state_.step - 1);
  return done.first_row + done.rows >= plan_.train().rows(done.epoch);
}

void TrainingRun::export_epoch() {
  if (!settings_.export_every_epoch || !epoch_ended()) return;
  step_end_.reset();
  export_to(folder_.exported_epoch(static_cast<int64_t>(std::llround(plan_.epochs_after(state_.step)))));
}

void TrainingRun::finish() {
  if (settings_.export_at_end) export_to(folder_.exported());
}

void TrainingRun::export_to(const std::filesystem::path& directory) {
  ExportRecord record{state_.step, std::string(torch_name(export_dtype(settings_, plan_.config())))};
  // Ranks see one folder and come to the same answer before rank 0 writes.
  const bool there = is_exported(directory, record);
  const std::string done = "exported " + directory.filename().string();
  coordinator_.barrier("looked at " + directory.filename().string());
  if (there) return;
  coordinator_.at_phase("export");
  save();
  if (ranks_.is_leader()) {
    // While it writes the others wait, as long as it takes: a call that hangs ends the run.
    export_run(directory, plan_, SnapshotReader(store_.path_of(state_.step)), record, ops_);
    clear_for_log();
    spdlog::info("exported to {}", directory.string());
    coordinator_.publish(done, "");
  }
  coordinator_.wait_for(done);
}

void TrainingRun::clear_for_log() {
  if (progress_) progress_->clear();
}

}  // namespace satune
