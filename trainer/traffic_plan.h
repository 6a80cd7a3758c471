// Bytes that one rank sends, and how much of the sending a step can hide behind its computation. Counted as
// ProcessGroup::traffic() counts: sizes asked for, padding included, headers of the transport left out.
#pragma once

#include <cstdint>

#include "trainer/memory_plan.h"

namespace satune {

/// Of one rank, n = world size: a reduce-scatter of b bytes sends (n - 1) / n * b, an all-gather of b bytes
/// the same. All zero for a world of one.
struct TrafficPlan {
  int64_t micro_steps = 1;         ///< gradient_accumulation_steps
  int64_t reduced = 0;             ///< per micro-step: gradients
  int64_t gathered_first = 0;      ///< stage 3, a step's first micro-step: parameters
  int64_t gathered_later = 0;      ///< stage 3, every other one, which finds one layer still gathered
  int64_t gathered_at_update = 0;  ///< stage 0: summed gradients; 1 and 2: parameters

  int64_t replicated = 0;  ///< per step, between replicas of a share: its sums
  int64_t exchanged = 0;   ///< per step: losses and the norm

  int64_t gathered_per_step() const {
    return gathered_first + (micro_steps - 1) * gathered_later + gathered_at_update;
  }
  int64_t per_step() const { return micro_steps * reduced + gathered_per_step() + replicated + exchanged; }
};

TrafficPlan plan_traffic(const PlannedRun& run, const Sharded& sharded);

/// The usual count, to compare with: without padding, every micro-step's gradients reduced, and all
/// parameters gathered once per step (stages 0-2) or twice per micro-step (stage 3, which skips a few of
/// these gathers).
int64_t usual_bytes_per_step(const PlannedRun& run, const Sharded& sharded);

/// 8-bit products on cards that have them (Ada, Hopper, Blackwell) against 16-bit ones: peak rates.
inline constexpr double kFp8Speed = 2;

struct Rates {
  double flops = 0;  ///< achieved, per second and device; of 8-bit products kFp8Speed times as much
  double bytes_per_second = 0;  ///< that one rank sends while it receives as much
};

/// Seconds of one step as the schedule has them: one stream computes, one sends in order. Left out: the
/// update, the data, saving.
struct StepEstimate {
  double forward = 0,
         backward = 0;  ///< computation of a micro-step; what is computed again counts in backward
  double sending = 0;   ///< of the whole step
  double exposed = 0;   ///< of it, while nothing is computed
  double step = 0;

  double hidden_fraction() const { return sending > 0 ? 1 - exposed / sending : 1; }
};

/// `recording`: of the memory plan.
StepEstimate estimate_step(const PlannedRun& run, const Sharded& sharded,
                           const std::vector<Recording>& recording, const Rates& rates);

}  // namespace satune
