// The line for a store that no longer answers: who is behind it depends on who holds it.
#pragma once

#include <optional>
#include <string>

#include "trainer/rank_environment.h"
#include "trainer/rank_records.h"

namespace satune {

/// `leader`: rank 0's last heartbeat. `reason`: what RunStore's exception says, which names the server.
RunFailure lost_store(const RankEnvironment& environment, const std::optional<Heartbeat>& leader,
                      const std::string& reason);

}  // namespace satune
