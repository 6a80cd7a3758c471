#include "trainer/common_ground.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/files/error.h"
#include "model/files/safetensors.h"

namespace satune {
namespace {

/// Paths, whose content is compared instead, and what only rank 0's counts for or changes no number.
constexpr const char* kOwnSettings[] = {"model_name_or_path", "output_dir",  "train_file", "eval_file",
                                        "token_cache_dir",    "num_threads", "template",   "resume"};

void add_differences(const std::string& prefix, const Json& mine, const Json& leaders,
                     std::vector<std::string>& found) {
  if (mine == leaders) return;
  if (!mine.is_object() || !leaders.is_object()) {
    found.push_back(fmt::format("{}: found {}, expected {}", prefix, mine.dump(), leaders.dump()));
    return;
  }
  Json keys = leaders;
  keys.update(mine);
  for (const auto& [key, unused] : keys.items()) {
    add_differences(prefix.empty() ? key : prefix + "." + key, mine.value(key, Json()),
                    leaders.value(key, Json()), found);
  }
}

}  // namespace

Json common_ground(RunPlan& plan, const at::Device& device) {
  Json ground = settings_json(plan.settings());
  for (const char* key : kOwnSettings) ground.erase(key);
  ground["device"] = device.is_cpu() ? "cpu" : "cuda";
  ground["train_file"] = "records with fingerprint " + plan.train().fingerprint();
  if (plan.eval() != nullptr) ground["eval_file"] = "records with fingerprint " + plan.eval()->fingerprint();
  ground["model_name_or_path"] = model_config_json(plan.config());
  if (plan.world_size() > 1) {
    ground["model_name_or_path"]["weights"] =
        "fingerprint " + sampled_fingerprint(Checkpoint(plan.model_directory()));
  }
  ground["total steps"] = plan.total_steps();
  return ground;
}

std::vector<std::string> differences(const Json& mine, const Json& leaders) {
  std::vector<std::string> found;
  add_differences("", mine, leaders, found);
  return found;
}

void check_common_ground(const Json& mine, Coordinator& coordinator) {
  constexpr const char* kName = "common ground";
  const int64_t rank = coordinator.world().rank;
  if (rank == 0) return coordinator.publish(kName, mine.dump());
  const auto found = differences(mine, Json::parse(coordinator.wait_for(kName)));
  if (found.empty()) return;
  throw BadInput(fmt::format("rank {} is not set up as rank 0 is: {}", rank, fmt::join(found, "; ")));
}

}  // namespace satune
