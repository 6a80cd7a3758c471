// Which snapshot a run continues from, and whether it may.
#pragma once

#include <memory>
#include <optional>

#include "trainer/adamw.h"
#include "trainer/run_plan.h"
#include "trainer/sharding.h"
#include "trainer/snapshot_reader.h"
#include "trainer/snapshot_store.h"

namespace satune {

/// Per `settings.resume`: "auto", the newest snapshot of the store that is complete and whose checksums hold
/// (nullptr where there is no snapshot at all); a folder, that one. Newer damaged snapshots are set aside
/// with a warning. Throws BadInput when all are damaged, when the snapshot has no optimizer state, and when a
/// folder is named although the store holds newer complete snapshots.
std::unique_ptr<SnapshotReader> find_snapshot(const Settings& settings, const SnapshotStore& store);

/// Rows of a step that a plan for `settings` must keep to continue the snapshot's run: set while batch size
/// and accumulation are those of the run, so that another number of ranks trains the same global batches.
std::optional<int64_t> rows_to_keep(const SnapshotReader& snapshot, const Settings& settings);

/// Throws BadInput when continuing from the snapshot would not continue the same run: settings that change
/// the trajectory (each with both values) or other training data; `allow_changes` turns that into warnings.
/// Always throws for a model of another shape, sharing plan or set of trained tensors, and for another number
/// of rows in a step, with both values. Warns when the machine differs in what bits depend on.
void check_continuation(const SnapshotReader& snapshot, RunPlan& plan, const Json& machine);

/// Fills the optimizer's share from the snapshot, whatever world it was written on, then its weight shards.
void restore_optimizer(AdamW& optimizer, const SnapshotReader& snapshot);

/// Fills the optimizer's master from a checkpoint, in the checkpoint's precision, then its weight shards, and
/// the frozen tensors.
void load_pretrained(AdamW& optimizer, const Sharding& sharding, const Checkpoint& checkpoint);
void load_frozen(const Sharding& sharding, const Checkpoint& checkpoint, const TensorTable& table);

}  // namespace satune
