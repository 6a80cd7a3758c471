// Which attempt of the run this is, agreed on by its ranks.
//
// A store that outlives an attempt still holds its keys. TORCHELASTIC_RESTART_COUNT does not tell attempts
// apart on several machines: each agent of torchrun counts its own restarts, and one that restarts its ranks
// because another machine's have failed does not count, so that ranks of one attempt may have different
// counts, and never meet under them.
#pragma once

#include <chrono>
#include <string>

#include "trainer/rank_environment.h"

namespace satune {

/// `environment` with `attempt` set, the same on all ranks and new for each attempt, when all have called it
/// (each process once, before its other connections; the processes of earlier attempts have ended). Where no
/// agent holds the store, its keys are those of this attempt anyway and nothing is asked. Throws
/// EnvironmentError that names the missing ranks after `timeout`.
RankEnvironment agree_on_attempt(RankEnvironment environment, std::chrono::seconds timeout);

}  // namespace satune
