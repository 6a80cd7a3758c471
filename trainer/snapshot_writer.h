// Writing a snapshot: streamed from the optimizer's buffers into a temporary folder, which is renamed into
// place when everything in it is durable.
#pragma once

#include <filesystem>
#include <vector>

#include "trainer/adamw.h"
#include "trainer/coordinator.h"
#include "trainer/snapshot.h"

namespace satune {

/// Writes `folder` (which must not exist); all ranks call it for the same step, once. Each writes its share
/// of coordinator.world() at the same time; rank 0 makes the folder, waits for the others' files, and writes
/// state.json and the manifest. `state` is state.json without "shards" and "has_optimizer_state", which are
/// added here (rank 0's counts). `only_model`: the master alone, not resumable. Returns when the snapshot is
/// durable. Throws EnvironmentError, on every rank when one fails; `folder` does not exist then.
void write_snapshot(const std::filesystem::path& folder, const AdamW& optimizer, const SnapshotShare& share,
                    Coordinator& coordinator, Json state, int64_t step, bool only_model, FileOps& ops);

}  // namespace satune
