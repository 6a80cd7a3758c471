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
    try {
      snapshot = open_verified(candidate->folder);
    } catch (const BadInput& error) {
      spdlog::warn("snapshot {} is skipped: {}", candidate->folder.string(), error.what());
      damaged.push_back(candidate->folder);
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

void check_continuation(const SnapshotReader& snapshot, RunPlan& plan, const Json& machine) {
  const std::string source = (snapshot.folder() / kStateFile).string();
  const bool allowed = plan.settings().allow_changes;
  if (model_config_json(snapshot.config()) != model_config_json(plan.config()) ||
      snapshot.trained_mask() != plan.trained_mask()) {
    throw bad_input(source, "a model of another shape, sharing plan or set of trained tensors",
                    "that of " + plan.model_directory().string());
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
    spdlog::warn("the run was on {} {}, this is {}: it continues, but not to the last bit", key,
                 then.contains(key) ? then.at(key).dump() : "unknown", value.dump());
  }
}

void restore_optimizer(AdamW& optimizer, const SnapshotReader& snapshot) {
  const ParameterBuffers& weights = optimizer.weights();
  for (int segment = 0; segment < weights.num_segments(); ++segment) {
    for (const ShardPiece& piece : shard_pieces(weights, segment, optimizer.world())) {
      for (const std::string_view part : kOptimizerParts) {
        const at::Tensor target =
            optimizer.part(part, segment)
                .slice(0, piece.shard_offset, piece.shard_offset + piece.elements.size());
        at::Tensor host = target.is_cpu() ? target : at::empty(target.sizes(), at::kFloat);
        snapshot.read(part, piece.tensor, piece.elements,
                      {host.mutable_data_ptr<float>(), static_cast<size_t>(host.numel())});
        if (!target.is_cpu()) target.copy_(host);
      }
    }
  }
  optimizer.write_weights();
}

}  // namespace satune
