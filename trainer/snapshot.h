// A snapshot: everything that a run continues from, in one folder that is complete or not there.
//
//   output_dir/snapshots/step-00001234/
//     rank-00000.safetensors  "master.NAME", "exp_avg.NAME", "exp_avg_sq.NAME" (1-D): the element range of
//     each
//                             trained tensor that this rank owns; fp32, or as the run's memory mode keeps
//                             them: bf16, or codes of 8 bits with "exp_avg_scale.NAME",
//                             "exp_avg_sq_scale.NAME" (trainer/optimizer_state.h). A split master is stored
//                             as the fp32 that it is
//     state.json              counters, data position, settings, model config, machine, ranges per rank
//     MANIFEST.json           size and CRC-32C of the files above; written last
//
// Frozen tensors are not stored: they are those of the base model's directory, whose path and checksums
// state.json holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "data/files/atomic_file.h"
#include "data/files/json.h"
#include "model/files/tensor_table.h"
#include "trainer/optimizer_state.h"
#include "trainer/shard.h"

namespace satune {

inline constexpr std::string_view kSnapshotFolder = "snapshots";
inline constexpr std::string_view kStateFile = "state.json";
inline constexpr std::string_view kManifestFile = "MANIFEST.json";

/// "step-00001234"
std::string snapshot_name(int64_t step);
/// The step of such a name; -1 for any other.
int64_t snapshot_step(std::string_view folder_name);
/// "rank-00003.safetensors"
std::string rank_file_name(int64_t rank);

/// Bytes of one snapshot, all ranks together (the JSON files counted as 1 MiB).
uint64_t snapshot_bytes(const TensorTable& table, const std::vector<bool>& trained,
                        const std::vector<StoredPart>& parts);

/// Size and checksum of one file of a snapshot.
struct ManifestEntry {
  std::string name;
  uint64_t size = 0;
  uint32_t checksum = 0;
};

Json manifest_json(int64_t step, const std::vector<ManifestEntry>& files);
/// Reads MANIFEST.json of a snapshot and compares the sizes of its files. Throws BadInput naming the file
/// when it is missing, cut off or malformed.
std::vector<ManifestEntry> read_manifest(const std::filesystem::path& snapshot);
/// Compares the checksums, reading every byte. Throws BadInput naming the file.
void verify_checksums(const std::filesystem::path& snapshot, const std::vector<ManifestEntry>& files);

}  // namespace satune
