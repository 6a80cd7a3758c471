#include "trainer/memory_choice.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "trainer/collective.h"
#include "trainer/device.h"
#include "trainer/memory_modes.h"
#include "trainer/progress.h"

namespace satune {
namespace {

void warn_of_host_memory(int64_t needed) {
  const int64_t available = available_memory(at::kCPU);
  if (needed <= available) return;
  spdlog::warn("the run's processes on this machine need {} of its memory beside their cards, {} available",
               format_bytes(static_cast<double>(needed)), format_bytes(static_cast<double>(available)));
}

}  // namespace

int64_t least_available_memory(Ranks& ranks, const at::Device& device, int64_t local_ranks) {
  const double mine[] = {static_cast<double>(available_memory(device, local_ranks))};
  const std::vector<double> all = in_collective(ranks.coordinator(), "exchange of available memory",
                                                [&] { return ranks.groups().all.exchange(mine); });
  constexpr double kMost = 0x1p62;  // without a limit it is the largest int64_t, and rounded up
  return static_cast<int64_t>(std::min(*std::min_element(all.begin(), all.end()), kMost));
}

MemoryChoice choose_memory(const RunPlan& plan, const at::Device& device, AttentionKernel attention,
                           Ranks& ranks, int64_t local_ranks) {
  const Settings& settings = plan.settings();
  PlannedRun run =
      planned_run(plan.model(), settings, !device.is_cpu(), operator_threads(settings, local_ranks));
  run.attention = attention;
  const int64_t world_size = ranks.world().size, available = available_memory(device, local_ranks);
  const int64_t least = least_available_memory(ranks, device, local_ranks);
  Coordinator& coordinator = ranks.coordinator();
  if (ranks.is_leader()) {
    const StageChoice choice = choose_zero_stage(run, world_size, least);
    if (world_size > 1) spdlog::info("{}", choice.reason);
    const Sharded chosen{world_size, choice.stage, shard_group_size(settings, world_size)};
    const std::string warning = why_it_will_not_fit(run, chosen, least);
    if (!warning.empty()) spdlog::warn("{}", warning);
    coordinator.publish("zero stage", std::to_string(choice.stage));
  }
  const int64_t stage = std::stoll(coordinator.wait_for("zero stage"));
  const Sharded sharded{world_size, stage, shard_group_size(settings, world_size)};
  const MemoryPlan memory = plan_memory(run, sharded, available);
  if (ranks.is_leader()) {
    for (const std::string& line : memory_table(memory, available)) spdlog::info("{}", line);
    warn_of_host_memory(memory.host * local_ranks);
  }
  return {static_cast<int>(stage), memory.recording, memory.host_activations};
}

}  // namespace satune
