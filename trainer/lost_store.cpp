#include "trainer/lost_store.h"

#include <fmt/format.h>

#include "data/files/error.h"

namespace satune {

RunFailure lost_store(const RankEnvironment& environment, const std::optional<Heartbeat>& leader,
                      const std::string& reason) {
  const ProcessState there =
      leader ? state_of(leader->process, this_process().machine) : ProcessState::kElsewhere;
  // The agent that holds the store is rank 0's own: on another machine the two are lost together.
  const bool named = leader && (!environment.agent_store || there == ProcessState::kElsewhere);
  if (environment.world.rank == 0 || (environment.agent_store && !named)) {
    const char* holder = environment.agent_store ? "the launcher" : "this process";
    return {0, true, kExitEnvironment, fmt::format("{} ({} holds it)", reason, holder)};
  }
  std::string message = describe_rank(0, leader);
  if (there == ProcessState::kGone) {
    message += " is gone: its process ended";
  } else {
    message += fmt::format(" is lost, and {} store with it: {}",
                           environment.agent_store ? "its launcher's" : "its", reason);
  }
  if (leader) message += "; last heard of in " + describe_position(*leader);
  return {0, true, kExitEnvironment, message};
}

}  // namespace satune
