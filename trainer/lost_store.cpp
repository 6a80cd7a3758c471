#include "trainer/lost_store.h"

#include <fmt/format.h>

#include "data/files/error.h"

namespace satune {

RunFailure lost_store(const RankEnvironment& environment, const std::optional<Heartbeat>& leader,
                      const std::string& reason) {
  if (environment.agent_store || environment.world.rank == 0) {
    const char* holder = environment.agent_store ? "the launcher" : "this process";
    return {0, true, kExitEnvironment, fmt::format("{} ({} holds it)", reason, holder)};
  }
  const bool gone = leader && state_of(leader->process, this_process().machine) == ProcessState::kGone;
  std::string message = describe_rank(0, leader) +
                        (gone ? " is gone: its process ended" : " is lost, and its store with it: " + reason);
  if (leader) message += "; it was in " + describe_position(*leader);
  return {0, true, kExitEnvironment, message};
}

}  // namespace satune
