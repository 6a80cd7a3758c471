// The run's one failure: of several that are announced, the one that takes the first ticket is what ranks
// name.
#pragma once

#include <optional>

#include "trainer/rank_records.h"

namespace satune {

class RunStore;

std::optional<RunFailure> read_failure(RunStore& store);

/// Announces `failure` and returns the one that stands. Throws EnvironmentError when the store is lost.
RunFailure announce_first(RunStore& store, const RunFailure& failure);

}  // namespace satune
