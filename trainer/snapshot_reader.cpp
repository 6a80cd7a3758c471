#include "trainer/snapshot_reader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/files/stored_dtype.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

/// [begin, end) of an entry of a shard's "ranges".
ElementRange parse_range(const JsonFields& ranges, const std::string& name, int64_t elements) {
  const Json* range = ranges.find(name);
  const bool is_pair = range != nullptr && range->is_array() && range->size() == 2 &&
                       (*range)[0].is_number_integer() && (*range)[1].is_number_integer();
  if (!is_pair) ranges.fail(name, "[begin, end)");
  const ElementRange parsed{(*range)[0].get<int64_t>(), (*range)[1].get<int64_t>()};
  if (parsed.begin < 0 || parsed.begin > parsed.end || parsed.end > elements)
    ranges.fail(name, fmt::format("[begin, end) within its {} elements", elements));
  return parsed;
}

/// Bytes [begin, begin + count) of a stored tensor, as one that can be released by itself.
StoredTensor part_of(const StoredTensor& stored, size_t begin, size_t count) {
  StoredTensor part = stored;
  part.bytes = stored.bytes.subspan(begin, count);
  return part;
}

/// CRC-32C of a tensor's bytes, which are given back as they are read.
std::string checksum_of(const Checkpoint& base, const StoredTensor& stored) {
  constexpr size_t kPiece = size_t{16} << 20;
  uint32_t checksum = 0;
  for (size_t begin = 0; begin < stored.bytes.size(); begin += kPiece) {
    const StoredTensor part = part_of(stored, begin, std::min(kPiece, stored.bytes.size() - begin));
    checksum = crc32c(part.bytes, checksum);
    base.release(part);
  }
  return fmt::format("{:08x}", checksum);
}

}  // namespace

SnapshotReader::SnapshotReader(fs::path folder) : folder_(std::move(folder)) {
  manifest_ = read_manifest(folder_);
  const std::string source = (folder_ / kStateFile).string();
  state_ = read_json_file(source);
  const JsonFields state(state_, source);
  step_ = state.object("progress").integer("step", 0, std::numeric_limits<int64_t>::max());
  has_optimizer_state_ = state.boolean("has_optimizer_state");
  for (const char* key : {"model", "settings", "frozen", "machine"}) state.object(key);
  state.string("data_fingerprint");
  config_ = parse_model_config(state_.at("model"), source);
  table_ = TensorTable(config_);
  base_model_ = state.string("base_model");
  open_ranks(state);
  check_coverage();
}

void SnapshotReader::open_ranks(const JsonFields& state) {
  const std::string source = (folder_ / kStateFile).string();
  const size_t count = table_.tensors().size();
  trained_.assign(count, false);
  const Json* shards = state.find("shards");
  if (shards == nullptr || !shards->is_array()) state.fail("shards", "an array with an entry for each rank");
  for (const Json& entry : *shards) {
    const JsonFields shard(entry, fmt::format("{}: shards", source));
    RankFile rank{std::make_unique<SafetensorsFile>(folder_ / shard.string("file")),
                  std::vector<ElementRange>(count)};
    const JsonFields ranges = shard.object("ranges");
    for (const auto& [name, range] : entry.at("ranges").items()) {
      const TensorInfo* info = table_.find(name);
      if (info == nullptr) throw bad_input(source, "ranges of " + quote_json(name), "tensors of the model");
      const auto index = static_cast<size_t>(info - table_.tensors().data());
      rank.ranges[index] = parse_range(ranges, name, info->numel());
      trained_[index] = true;
    }
    ranks_.push_back(std::move(rank));
  }
}

void SnapshotReader::check_coverage() const {
  for (size_t i = 0; i < trained_.size(); ++i) {
    if (!trained_[i]) continue;
    std::vector<ElementRange> ranges;
    for (const RankFile& rank : ranks_) {
      if (rank.ranges[i].size() > 0) ranges.push_back(rank.ranges[i]);
    }
    std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
    int64_t reached = 0;
    for (const ElementRange& range : ranges) {
      if (range.begin != reached) break;
      reached = range.end;
    }
    if (reached != table_.tensors()[i].numel()) {
      throw bad_input((folder_ / kStateFile).string(),
                      fmt::format("ranges of {} that leave a gap or overlap at element {}",
                                  table_.tensors()[i].name, reached),
                      fmt::format("all of its {} elements once", table_.tensors()[i].numel()));
    }
  }
}

void SnapshotReader::verify() const {
  verify_checksums(folder_, manifest_);
}

void SnapshotReader::read(std::string_view kind, size_t tensor, ElementRange range,
                          std::span<float> out) const {
  const std::string name = fmt::format("{}.{}", kind, table_.tensors()[tensor].name);
  for (const RankFile& rank : ranks_) {
    const ElementRange stored_range = rank.ranges[tensor];
    const int64_t begin = std::max(range.begin, stored_range.begin);
    const int64_t end = std::min(range.end, stored_range.end);
    if (begin >= end) continue;
    const StoredTensor* stored = rank.file->find(name);
    if (stored == nullptr || stored->dtype != "F32" ||
        stored->bytes.size() != static_cast<size_t>(stored_range.size()) * sizeof(float)) {
      throw bad_input(rank.file->path().string(),
                      stored == nullptr ? "no tensor " + name : name + " of another type or size",
                      fmt::format("{} fp32 elements", stored_range.size()));
    }
    const StoredTensor part =
        part_of(*stored, static_cast<size_t>(begin - stored_range.begin) * sizeof(float),
                static_cast<size_t>(end - begin) * sizeof(float));
    std::memcpy(out.data() + (begin - range.begin), part.bytes.data(), part.bytes.size());
    rank.file->release(part);
  }
}

at::Tensor SnapshotReader::elements(size_t tensor, int64_t begin, int64_t count) const {
  if (trained_[tensor]) {
    at::Tensor values = at::empty({count}, at::kFloat);
    read("master", tensor, {begin, begin + count},
         {values.mutable_data_ptr<float>(), static_cast<size_t>(count)});
    return values;
  }
  if (begin == 0) check_frozen(tensor);
  const StoredTensor& stored = frozen_tensor(tensor);
  at::Tensor values = at::empty({count}, scalar_type(dtype_of(stored)));
  const auto width = static_cast<size_t>(values.element_size());
  const StoredTensor part =
      part_of(stored, static_cast<size_t>(begin) * width, static_cast<size_t>(count) * width);
  std::memcpy(values.mutable_data_ptr(), part.bytes.data(), part.bytes.size());
  base_->release(part);
  return values;
}

const StoredTensor& SnapshotReader::frozen_tensor(size_t tensor) const {
  if (!base_) base_ = std::make_unique<Checkpoint>(base_model_);
  const std::string& name = table_.tensors()[tensor].name;
  const StoredTensor* stored = base_->find(name);
  if (stored == nullptr) throw bad_input(base_model_.string(), "no tensor " + name, "the run's base model");
  return *stored;
}

void SnapshotReader::check_frozen(size_t tensor) const {
  const std::string& name = table_.tensors()[tensor].name;
  const StoredTensor& stored = frozen_tensor(tensor);
  const std::string found = checksum_of(*base_, stored);
  const Json& frozen = state_.at("frozen");
  const std::string expected = frozen.contains(name) ? frozen.at(name).get<std::string>() : "none";
  if (found == expected) return;
  throw bad_input(base_->file_of(name).string(), fmt::format("{} with checksum {}", name, found),
                  fmt::format("{}: the base model that {} was trained from", expected, folder_.string()));
}

Json frozen_checksums(const Checkpoint& base, const TensorTable& table, const std::vector<bool>& trained) {
  Json checksums = Json::object();
  const auto tensors = table.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (trained.empty() || trained[i]) continue;
    const StoredTensor* stored = base.find(tensors[i].name);
    if (stored == nullptr) continue;  // load_weights() has the error for this
    checksums[tensors[i].name] = checksum_of(base, *stored);
  }
  return checksums;
}

}  // namespace satune
