// Other ways to run the same training, by the memory they need: each activation policy, the modes that fit
// the cards there are, and what to set where a run does not fit.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/memory_plan.h"

namespace satune {

/// gradient_checkpointing "false", "selective", "true"; "true" with split masters, with neither masters nor
/// large moments, and with optimizer_offload.
inline constexpr std::array<std::string_view, 6> kMemoryModes = {
    "keep", "selective", "recompute", "recompute+split", "recompute+none+8bit", "recompute+offload"};

/// The settings of run with one mode of kMemoryModes (0-based) in place.
Settings in_mode(const Settings& settings, size_t mode);

/// Memory of one rank under each activation policy: false, "selective", true. The rest of the settings stays.
struct PolicyPlan {
  std::string_view gradient_checkpointing;
  MemoryPlan memory;
};
std::array<PolicyPlan, 3> plan_policies(const PlannedRun& run, const Sharded& sharded, int64_t available);

/// Which modes one card has room for.
struct CardFit {
  std::string name;
  int64_t memory_bytes = 0;
  /// Per mode of kMemoryModes the lowest ZeRO stage at which a rank fits.
  std::array<std::optional<int64_t>, kMemoryModes.size()> lowest_stage;
};
/// For the common sizes of cards, ascending, at this many ranks (one: stage 0 alone).
std::vector<CardFit> fitting_modes(const PlannedRun& run, int64_t world_size, int64_t shard_group);

/// For a run that needs more than `available` bytes a rank: "needs 21.3 GiB a rank, 16.0 GiB available" and
/// the nearest settings that fit, most harmless first ("with gradient_checkpointing=true it needs 14.2 GiB"),
/// or that none of those tried does. Where that moves the optimizer off the card, what fits with less state
/// instead. "" where the run fits.
std::string why_it_will_not_fit(const PlannedRun& run, const Sharded& sharded, int64_t available);

}  // namespace satune
