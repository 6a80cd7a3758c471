// How a run uses its devices' memory: the ZeRO stage that all ranks agree on, and what each records.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <vector>

#include "model/ops/attention.h"
#include "trainer/memory_plan.h"
#include "trainer/ranks.h"
#include "trainer/run_plan.h"

namespace satune {

/// Decided while the device is still empty.
struct MemoryChoice {
  int zero_stage = 0;
  std::vector<Recording> recording;
  int64_t host_activations = 0;  ///< bytes that this rank will pin
};

/// Bytes that every rank can still allocate: the least available_memory() of them. All ranks call it, and
/// none goes on to take memory before all have looked.
int64_t least_available_memory(Ranks& ranks, const at::Device& device, int64_t local_ranks);

/// The stage goes by the least memory that a rank has, what a rank records by its own. Rank 0 logs the choice
/// and the plan, and warns of what will not fit. All ranks call it, once, after Ranks::connect_groups().
MemoryChoice choose_memory(const RunPlan& plan, const at::Device& device, AttentionKernel attention,
                           Ranks& ranks, int64_t local_ranks);

}  // namespace satune
