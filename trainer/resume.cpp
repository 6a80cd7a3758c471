#include "trainer/resume.h"

#include <ATen/ATen.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "data/files/error.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

std::unique_ptr<SnapshotReader> open_verified(const fs::path& folder) {
  auto snapshot = std::make_unique<SnapshotReader>(folder);
  snapshot->verify();
  return snapshot;
}

std::unique_ptr<SnapshotReader> open_newest(const SnapshotStore& store) {
  std::vector<StoredSnapshot> found = store.scan();
  std::vector<fs::path> damaged;
  std::unique_ptr<SnapshotReader> snapshot;
  for (auto candidate = found.rbegin(); candidate != found.rend() && !snapshot; ++candidate) {
    const auto skip = [&](const std::exception& error) {
      spdlog::warn("snapshot {} is skipped: {}", candidate->folder.string(), error.what());
      damaged.push_back(candidate->folder);
    };
    try {
      snapshot = open_verified(candidate->folder);
    } catch (const BadInput& error) {
      skip(error);
    } catch (const EnvironmentError& error) {  // a disk that cannot read it
      skip(error);
    }
  }
  if (!snapshot && !damaged.empty()) {
    throw bad_input(store.folder().string(), fmt::format("{} snapshots, none complete", damaged.size()),
                    "a complete one to continue from, or an output_dir without any");
  }
  for (const fs::path& folder : damaged) store.set_aside(folder);
  return snapshot;
}

std::unique_ptr<SnapshotReader> open_named(const fs::path& folder, const SnapshotStore& store) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    const std::string hint = nearest_name(folder.string(), {"auto", "never"});
    throw bad_input("resume", quote_json(folder.string()),
                    "\"auto\", \"never\" or a snapshot folder" +
                        (hint.empty() ? std::string() : fmt::format(" (did you mean \"{}\"?)", hint)));
  }
  auto snapshot = open_verified(folder);
  for (const StoredSnapshot& other : store.scan()) {
    if (other.step <= snapshot->step()) continue;
    if (!other.damage.empty()) {
      store.set_aside(other.folder);
      continue;
    }
    throw bad_input("resume " + folder.string(), "the newer snapshot " + other.folder.string(),
                    "none: move it away, or branch off into another output_dir");
  }
  return snapshot;
}

/// Rows of a step of the run; snapshots of older builds do not say it, and were written by one process.
int64_t rows_of(const SnapshotReader& snapshot) {
  const Json& state = snapshot.state();
  if (state.contains("rows_per_step")) return state.at("rows_per_step").get<int64_t>();
  return snapshot.settings().at("per_device_train_batch_size").get<int64_t>() *
         snapshot.settings().at("gradient_accumulation_steps").get<int64_t>();
}

/// What another plan would train is another model; no setting allows that.
void check_same_model(const SnapshotReader& snapshot, const RunPlan& plan, const std::string& source) {
  const SharingPlan &then = snapshot.config().sharing, &now = plan.config().sharing;
  if (!(then == now)) {
    throw bad_input("sharing.layers", describe_sharing(now),
                    fmt::format("{}, that of {}", describe_sharing(then), source));
  }
  if (snapshot.trained_mask() != plan.trained_mask()) {
    throw bad_input(
        "unfrozen_parameters", settings_json(plan.settings()).at("unfrozen_parameters").dump(),
        fmt::format("{}, those of {}", snapshot.settings().at("unfrozen_parameters").dump(), source));
  }
  if (model_config_json(snapshot.config()) != model_config_json(plan.config())) {
    throw bad_input(source, "a model of another shape", "that of " + plan.model_directory().string());
  }
}

void refuse_or_warn(bool allowed, const std::string& what) {
  if (!allowed) throw BadInput(what + " (--allow-changes continues all the same)");
  spdlog::warn("{}", what);
}

}  // namespace

std::unique_ptr<SnapshotReader> find_snapshot(const Settings& settings, const SnapshotStore& store) {
  if (settings.resume == "never") return nullptr;
  auto snapshot = settings.resume == "auto" ? open_newest(store) : open_named(settings.resume, store);
  if (snapshot && !snapshot->has_optimizer_state()) {
    throw bad_input(snapshot->folder().string(), "a snapshot without optimizer state (save_only_model)",
                    "one to continue from; `satune export` makes a model of it");
  }
  return snapshot;
}

std::optional<int64_t> rows_to_keep(const SnapshotReader& snapshot, const Settings& settings) {
  const Json now = settings_json(settings);
  for (const char* key : {"per_device_train_batch_size", "gradient_accumulation_steps"}) {
    if (snapshot.settings().at(key) != now.at(key)) return std::nullopt;
  }
  return rows_of(snapshot);
}

void check_continuation(const SnapshotReader& snapshot, RunPlan& plan, const Json& machine) {
  const std::string source = (snapshot.folder() / kStateFile).string();
  const bool allowed = plan.settings().allow_changes;
  check_same_model(snapshot, plan, source);
  if (const int64_t rows = rows_of(snapshot); rows != plan.rows_per_step()) {
    throw bad_input("per_device_train_batch_size x gradient_accumulation_steps x processes",
                    fmt::format("{} rows a step", plan.rows_per_step()),
                    fmt::format("{}, those of the run in {}", rows, source));
  }
  if (const auto changes = trajectory_changes(snapshot.settings(), plan.settings()); !changes.empty()) {
    refuse_or_warn(allowed, fmt::format("{}: settings differ from those of the run: {}", source,
                                        fmt::join(changes, "; ")));
  }
  const auto data = snapshot.state().at("data_fingerprint").get<std::string>();
  if (data != plan.train().fingerprint()) {
    refuse_or_warn(allowed,
                   fmt::format("{}: found training data with fingerprint {}, expected {}: records, tokenizer "
                               "or template changed",
                               plan.settings().train_file, plan.train().fingerprint(), data));
  }
  const Json& then = snapshot.state().at("machine");
  for (const auto& [key, value] : machine.items()) {
    if (then.contains(key) && then.at(key) == value) continue;
    if (key == "card" && !then.contains(key)) continue;  // it was on the CPU, which "device" says
    spdlog::warn("the run was on {} {}, this is {}: it continues, but not to the last bit", key,
                 then.contains(key) ? then.at(key).dump() : "unknown", value.dump());
  }
  const Json& world = snapshot.state().at("world");
  const auto group = world.value("shard_group_size", world.at("size").get<int64_t>());
  const int64_t now = shard_group_size(plan.settings(), plan.world_size());
  if (group != now && world.at("size") == plan.world_size())  // else told by the number of processes
    spdlog::warn("the run had shard_group_size {}, this has {}: it continues, but not to the last bit", group,
                 now);
}

void restore_optimizer(AdamW& optimizer, const SnapshotReader& snapshot) {
  optimizer.fill(kOptimizerParts, [&](std::string_view part, size_t tensor, const ElementRange& elements,
                                      const at::Tensor& into) {
    snapshot.read(part, tensor, elements,
                  {into.mutable_data_ptr<float>(), static_cast<size_t>(into.numel())});
  });
}

void load_pretrained(AdamW& optimizer, const Sharding& sharding, const Checkpoint& checkpoint) {
  const ParameterBuffers& weights = optimizer.weights();
  const auto tensors = weights.table().tensors();
  optimizer.fill(std::span(kOptimizerParts).first(1),
                 [&](std::string_view, size_t tensor, const ElementRange& elements, const at::Tensor& into) {
                   load_elements(into, checkpoint, tensors[tensor], elements.begin);
                 });
  load_frozen(sharding, checkpoint, weights.table());
}

void load_frozen(const Sharding& sharding, const Checkpoint& checkpoint, const TensorTable& table) {
  for (const Sharding::FrozenPiece& piece : sharding.frozen_pieces()) {
    load_elements(piece.values, checkpoint, table.tensors()[piece.tensor], piece.begin);
  }
}

}  // namespace satune
