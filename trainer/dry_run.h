// `satune train --dry-run`: everything a run checks before step 0, and what it would do, as text. No weight
// is read and nothing is written (but the token cache, which the run then uses).
#pragma once

#include <string>

#include "trainer/run_plan.h"

namespace satune {

/// Lines for a person: model, data, steps, targets per step, disk, memory, one example as trained. What would
/// stop a run on this machine but not on another (disk, memory, no card, no such attention kernel) is a line
/// that starts with "WARNING". Throws BadInput when the run would refuse the snapshot it is to take up
/// (checksums are compared, so a large one takes a while; a damaged one is not set aside), or resume "never"
/// meets a used folder, and EnvironmentError when output_dir cannot be written. `local_ranks`: those of the
/// plan's ranks that share this machine.
std::string dry_run_report(RunPlan& plan, int64_t local_ranks = 1);

}  // namespace satune
