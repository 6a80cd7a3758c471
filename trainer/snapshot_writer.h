// Writing a snapshot: streamed from the optimizer's buffers into a temporary folder, which is renamed into
// place when everything in it is durable.
#pragma once

#include <filesystem>
#include <vector>

#include "trainer/adamw.h"
#include "trainer/snapshot.h"

namespace satune {

/// Writes `folder` (which must not exist). `state` is state.json without "shards" and "has_optimizer_state",
/// which are added here. `only_model`: the master alone, not resumable. Throws EnvironmentError; `folder`
/// does not exist then.
void write_snapshot(const std::filesystem::path& folder, const AdamW& optimizer, Json state, int64_t step,
                    bool only_model, FileOps& ops);

}  // namespace satune
