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

// What lies on a card, and what is stored otherwise than it is kept, passes through the host in pieces of
// this many elements.
constexpr int64_t kPiece = int64_t{2} << 20;

std::span<const StoredPart> parts_written(const SnapshotSource& source, bool only_model) {
  return std::span(source.parts).first(only_model ? 1 : source.parts.size());
}

const char* dtype_name(at::ScalarType type) {
  return type == at::kFloat ? "F32" : type == at::kBFloat16 ? "BF16" : "U8";
}

/// Every piece of the rank's share in storage order.
std::vector<ShardPiece> all_pieces(const ParameterBuffers& weights, const World& world) {
  std::vector<ShardPiece> all;
  for (int segment = 0; segment < weights.num_segments(); ++segment) {
    for (const ShardPiece& piece : shard_pieces(weights, segment, world)) all.push_back(piece);
  }
  return all;
}

void write_numbers(SafetensorsWriter& writer, const at::Tensor& numbers) {
  const at::Tensor host = numbers.cpu().contiguous();
  writer.write({static_cast<const std::byte*>(host.const_data_ptr()), host.nbytes()});
}

void write_piece(SafetensorsWriter& writer, const SnapshotSource& source, const StoredPart& part,
                 const ShardPiece& piece) {
  if (part.scales) {  // few, and of blocks that a cut would name twice
    write_numbers(writer, source.read(part, piece.tensor, piece.elements));
    return;
  }
  for (int64_t begin = piece.elements.begin; begin < piece.elements.end; begin += kPiece) {
    write_numbers(writer,
                  source.read(part, piece.tensor, {begin, std::min(piece.elements.end, begin + kPiece)}));
  }
}

ManifestEntry write_rank_file(const fs::path& folder, const SnapshotSource& source, const World& world,
                              bool only_model, FileOps& ops) {
  const auto tensors = source.weights.table().tensors();
  const std::vector<ShardPiece> pieces = all_pieces(source.weights, world);
  std::vector<TensorSpec> specs;
  for (const StoredPart& part : parts_written(source, only_model)) {
    for (const ShardPiece& piece : pieces) {
      const int64_t begin = source.weights.offset(piece.tensor) + piece.elements.begin;
      specs.push_back({fmt::format("{}.{}", part.name(), tensors[piece.tensor].name),
                       dtype_name(part.type),
                       {part.numbers(begin, piece.elements.size())}});
    }
  }
  const std::string name = rank_file_name(world.rank);
  SafetensorsWriter writer(folder / name, std::move(specs), {{"format", "pt"}}, ops);
  for (const StoredPart& part : parts_written(source, only_model)) {
    for (const ShardPiece& piece : pieces) write_piece(writer, source, part, piece);
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
  return {optimizer.weights(), optimizer.stored_parts(),
          [&optimizer](const StoredPart& part, size_t tensor, const ElementRange& elements) {
            return optimizer.stored(part, tensor, elements);
          }};
}

StateCopy::StateCopy(const AdamW& optimizer, const World& share)
    : weights_(optimizer.weights()), share_(share), parts_(optimizer.stored_parts()) {
  for (const StoredPart& part : parts_) {
    std::map<size_t, at::Tensor>& copies = copies_[part.name()];
    for (const ShardPiece& piece : all_pieces(weights_, share)) {
      const at::Tensor numbers = optimizer.stored(part, piece.tensor, piece.elements);
      // What was decoded for us is a copy already.
      const bool ours = numbers.is_cpu() && numbers.storage().use_count() == 1;
      copies[piece.tensor] = ours ? numbers : numbers.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
    }
  }
}

SnapshotSource StateCopy::source() const {
  return {weights_, parts_, [this](const StoredPart& part, size_t tensor, const ElementRange& elements) {
            const at::Tensor& copy = copies_.find(part.name())->second.at(tensor);
            if (part.scales) return copy;  // read whole
            const ElementRange range =
                shard_range(weights_.flat(weights_.table().tensors()[tensor].segment).numel(), share_);
            const int64_t first = std::max<int64_t>(0, range.begin - weights_.offset(tensor));
            return copy.narrow(0, elements.begin - first, elements.size());
          }};
}

int64_t StateCopy::bytes(const AdamW& optimizer, const World& share) {
  const ParameterBuffers& weights = optimizer.weights();
  int64_t bytes = 0;
  for (int segment = 0; segment < weights.num_segments(); ++segment) {
    bytes += stored_bytes(optimizer.stored_parts(), shard_range(weights.flat(segment).numel(), share).size());
  }
  return bytes;
}

void write_snapshot(const fs::path& folder, const SnapshotSource& source, const SnapshotShare& share,
                    Coordinator& coordinator, Json state, int64_t step, bool only_model, FileOps& ops) {
  std::optional<AtomicDirectory> directory;
  if (coordinator.world().rank == 0) directory.emplace(folder, ops, AtomicDirectory::Existing::kReplace);
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
