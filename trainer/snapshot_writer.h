// Writing a snapshot: streamed from the optimizer's buffers into a temporary folder, which is renamed into
// place when everything in it is durable.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/adamw.h"
#include "trainer/coordinator.h"
#include "trainer/snapshot.h"

namespace satune {

/// The part of a snapshot that a rank writes.
struct SnapshotShare {
  World world;         ///< the shards, and which one is this rank's
  bool writes = true;  ///< false: another rank with the same shard does
  int64_t save = 0;    ///< of the saves of this start of the run, counted alike on all ranks
};

/// Where the numbers come from: those of a part for elements of a tensor, which this rank's share holds.
struct SnapshotSource {
  const ParameterBuffers& weights;
  std::vector<StoredPart> parts;  ///< in the order they are stored, the master first
  std::function<at::Tensor(const StoredPart& part, size_t tensor, const ElementRange& elements)> read;
};
/// The optimizer's state as it is while the snapshot is written. The optimizer must outlive it.
SnapshotSource source_of(const AdamW& optimizer);

/// The state of a share at one moment, on the host, while the optimizer goes on.
class StateCopy {
 public:
  StateCopy(const AdamW& optimizer, const World& share);
  /// Valid while this copy lives.
  SnapshotSource source() const;
  /// What a copy of a share takes.
  static int64_t bytes(const AdamW& optimizer, const World& share);

 private:
  const ParameterBuffers& weights_;
  World share_;
  std::vector<StoredPart> parts_;
  /// By part's name and tensor: the numbers of the tensor's elements in the share.
  std::map<std::string, std::map<size_t, at::Tensor>, std::less<>> copies_;
};

/// Writes `folder`, in the place of an earlier one of the same step; all ranks call it for the same step and
/// save. Each writes its
/// share at the same time; rank 0 makes the folder, waits for the others' files, and writes state.json and
/// the manifest. `state` is state.json without "shards" and "has_optimizer_state", which are added here (rank
/// 0's counts). `only_model`: the master alone, not resumable. Returns when the snapshot is durable. Throws
/// EnvironmentError, on every rank when one fails; `folder` is then as it was, or whole where only the very
/// last step failed, making it durable.
void write_snapshot(const std::filesystem::path& folder, const SnapshotSource& source,
                    const SnapshotShare& share, Coordinator& coordinator, Json state, int64_t step,
                    bool only_model, FileOps& ops);

}  // namespace satune
