// The thread that never talks to the store, so that a store that hangs cannot stop it: it counts a store that
// does not answer as lost, and ends the process whose main thread does not come by after a failure, or need
// not after a stop that ends all at once.
#pragma once

#include <memory>

#include "trainer/coordinator.h"
#include "trainer/rank_environment.h"
#include "trainer/rank_status.h"

namespace satune {

/// Until the coordinator is being destroyed.
void run_watchdog(const RankEnvironment& environment, const CoordinatorOptions& options, RankStatus& status,
                  const EndProcess& end_process) noexcept;

}  // namespace satune
