#include "trainer/snapshot_writer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <span>
#include <sstream>

#include "model/files/safetensors.h"
#include "trainer/failure_report.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

// A card's buffers pass through the host in pieces of this many elements.
constexpr int64_t kPiece = int64_t{16} << 20;

std::span<const std::string_view> parts_written(bool only_model) {
  return std::span(kOptimizerParts).first(only_model ? 1 : std::size(kOptimizerParts));
}

/// Every piece of the rank's share in storage order.
std::vector<ShardPiece> all_pieces(const ParameterBuffers& weights, const World& world) {
  std::vector<ShardPiece> all;
  for (int segment = 0; segment < weights.num_segments(); ++segment) {
    for (const ShardPiece& piece : shard_pieces(weights, segment, world)) all.push_back(piece);
  }
  return all;
}

void write_elements(SafetensorsWriter& writer, const at::Tensor& values) {
  for (int64_t begin = 0; begin < values.numel(); begin += kPiece) {
    const at::Tensor piece =
        values.slice(0, begin, std::min(values.numel(), begin + kPiece)).cpu().contiguous();
    writer.write(std::as_bytes(std::span(piece.const_data_ptr<float>(), static_cast<size_t>(piece.numel()))));
  }
}

ManifestEntry write_rank_file(const fs::path& folder, const SnapshotSource& source, const World& world,
                              bool only_model, FileOps& ops) {
  const auto tensors = source.weights.table().tensors();
  const std::vector<ShardPiece> pieces = all_pieces(source.weights, world);
  std::vector<TensorSpec> specs;
  for (const std::string_view part : parts_written(only_model)) {
    for (const ShardPiece& piece : pieces) {
      specs.push_back(
          {fmt::format("{}.{}", part, tensors[piece.tensor].name), "F32", {piece.elements.size()}});
    }
  }
  const std::string name = rank_file_name(world.rank);
  SafetensorsWriter writer(folder / name, std::move(specs), {{"format", "pt"}}, ops);
  for (const std::string_view part : parts_written(only_model)) {
    for (const ShardPiece& piece : pieces) {
      write_elements(writer, source.read(part, piece.tensor, piece.elements));
    }
  }
  writer.commit();
  return {name, writer.bytes_written(), writer.checksum()};
}

/// [{"file": NAME, "ranges": {TENSOR: [begin, end]}}], by rank.
Json shards_json(const ParameterBuffers& weights, int64_t world_size) {
  Json shards = Json::array();
  for (int64_t rank = 0; rank < world_size; ++rank) {
    Json ranges = Json::object();
    for (const ShardPiece& piece : all_pieces(weights, {rank, world_size})) {
      ranges[weights.table().tensors()[piece.tensor].name] = {piece.elements.begin, piece.elements.end};
    }
    shards.push_back({{"file", rank_file_name(rank)}, {"ranges", std::move(ranges)}});
  }
  return shards;
}

ManifestEntry write_json_file(const fs::path& path, const Json& json, FileOps& ops) {
  AtomicFile file(path, ops);
  file.write(write_json(json));
  file.commit();
  return {path.filename().string(), file.bytes_written(), file.checksum()};
}

/// An entry as a line that ranks pass on, and back.
std::string to_line(const ManifestEntry& entry) {
  return fmt::format("{} {} {}", entry.size, entry.checksum, entry.name);
}

ManifestEntry parse_line(const std::string& line) {
  ManifestEntry entry;
  std::istringstream fields(line);
  fields >> entry.size >> entry.checksum >> entry.name;
  return entry;
}

/// What rank 0 adds once every rank's file is there.
void complete(AtomicDirectory& directory, std::vector<ManifestEntry> files, const Json& state, int64_t step,
              FileOps& ops) {
  files.push_back(write_json_file(directory.path() / kStateFile, state, ops));
  write_json_file(directory.path() / kManifestFile, manifest_json(step, files), ops);
  directory.commit();
}

/// The part of write_snapshot() that all ranks have in common; `directory` is rank 0's.
void write_shares(std::optional<AtomicDirectory>& directory, const std::string& name,
                  const SnapshotSource& source, const SnapshotShare& share, Coordinator& coordinator,
                  Json state, int64_t step, bool only_model, FileOps& ops) {
  // The same step may be saved twice: first without the optimizer's state, then with it.
  const std::string save = fmt::format("save/{}/{}", share.save, name);
  if (directory) coordinator.publish(save + "/folder", directory->path().string());
  if (share.writes) {
    const fs::path temporary = coordinator.wait_for(save + "/folder");
    const ManifestEntry mine = write_rank_file(temporary, source, share.world, only_model, ops);
    coordinator.publish(fmt::format("{}/file-{}", save, share.world.rank), to_line(mine));
  }
  if (directory) {
    std::vector<ManifestEntry> files;
    for (int64_t rank = 0; rank < share.world.size; ++rank) {
      files.push_back(parse_line(coordinator.wait_for(fmt::format("{}/file-{}", save, rank))));
    }
    state["has_optimizer_state"] = !only_model;
    state["shards"] = shards_json(source.weights, share.world.size);
    complete(*directory, std::move(files), state, step, ops);
    coordinator.publish(save + "/complete", "");
  }
  coordinator.wait_for(save + "/complete");
}

}  // namespace

SnapshotSource source_of(const AdamW& optimizer) {
  return {optimizer.weights(),
          [&optimizer](std::string_view part, size_t tensor, const ElementRange& elements) {
            return optimizer.part(part, tensor, elements);
          }};
}

StateCopy::StateCopy(const AdamW& optimizer, const World& share)
    : weights_(optimizer.weights()), share_(share) {
  for (const std::string_view part : kOptimizerParts) {
    std::vector<at::Tensor>& copies = parts_[std::string(part)];
    for (int segment = 0; segment < weights_.num_segments(); ++segment) {
      const ElementRange range = shard_range(weights_.flat(segment).numel(), share);
      copies.push_back(at::empty({range.size()}, at::kFloat));
      for (const ShardPiece& piece : shard_pieces(weights_, segment, share)) {
        copies.back()
            .narrow(0, piece.shard_offset, piece.elements.size())
            .copy_(optimizer.part(part, piece.tensor, piece.elements));
      }
    }
  }
}

SnapshotSource StateCopy::source() const {
  return {weights_, [this](std::string_view part, size_t tensor, const ElementRange& elements) {
            const int segment = weights_.table().tensors()[tensor].segment;
            const ElementRange range = shard_range(weights_.flat(segment).numel(), share_);
            return parts_.find(part)->second[static_cast<size_t>(segment)].narrow(
                0, weights_.offset(tensor) + elements.begin - range.begin, elements.size());
          }};
}

int64_t StateCopy::bytes(const ParameterBuffers& weights, const World& share) {
  int64_t elements = 0;
  for (int segment = 0; segment < weights.num_segments(); ++segment) {
    elements += shard_range(weights.flat(segment).numel(), share).size();
  }
  return elements * static_cast<int64_t>(sizeof(float) * std::size(kOptimizerParts));
}

void write_snapshot(const fs::path& folder, const SnapshotSource& source, const SnapshotShare& share,
                    Coordinator& coordinator, Json state, int64_t step, bool only_model, FileOps& ops) {
  std::optional<AtomicDirectory> directory;
  if (coordinator.world().rank == 0) directory.emplace(folder, ops);
  try {
    write_shares(directory, folder.filename().string(), source, share, coordinator, std::move(state), step,
                 only_model, ops);
  } catch (...) {
    // Before the folder goes: what the others write into it then fails because of this, and not by itself.
    const Failure failure = current_failure();
    coordinator.announce_failure(failure.message, failure.exit_code);
    throw;
  }
}

}  // namespace satune
