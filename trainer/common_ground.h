// What the ranks of a run must have in common before they train together. Each reads its own machine, files
// and command line; nothing that comes later would notice that they differ, or say so.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "data/files/json.h"
#include "trainer/coordinator.h"
#include "trainer/run_plan.h"

namespace satune {

/// Kind of device, fingerprints of the data, the model's shape and, where there are several ranks, a
/// fingerprint of its weights, number of steps, and the settings; not those that may be another on each
/// machine (paths, threads) and say nothing about what is trained.
Json common_ground(RunPlan& plan, const at::Device& device);

/// What is not the same, one "key: found MINE, expected LEADERS" each; keys of nested objects with dots.
std::vector<std::string> differences(const Json& mine, const Json& leaders);

/// Holds `mine` against rank 0's: throws BadInput that names this rank and all differences. All ranks call
/// it, before they connect: ranks that were on cards and on the CPU would wait for each other in different
/// groups.
void check_common_ground(const Json& mine, Coordinator& coordinator);

}  // namespace satune
