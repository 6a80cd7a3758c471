#include "trainer/snapshot_reader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/files/stored_dtype.h"
#include "trainer/state_kernels.h"

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

/// Bytes of a number of a part; 0 for types that no part has.
size_t width_of(std::string_view dtype) {
  return dtype == "F32" ? sizeof(float) : dtype == "BF16" ? sizeof(uint16_t) : dtype == "U8" ? 1 : 0;
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
  places_ = ParameterBuffers(table_, trained_, at::kByte, at::kCPU, {.resident = false});
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
  for (const RankFile& rank : ranks_) {
    const ElementRange stored = rank.ranges[tensor];
    const ElementRange part{std::max(range.begin, stored.begin), std::min(range.end, stored.end)};
    if (part.begin < part.end) read_from(rank, kind, tensor, part, out.data() + (part.begin - range.begin));
  }
}

void SnapshotReader::read_from(const RankFile& rank, std::string_view kind, size_t tensor, ElementRange range,
                               float* out) const {
  const std::string name = fmt::format("{}.{}", kind, table_.tensors()[tensor].name);
  const StoredTensor* stored = rank.file->find(name);
  const size_t width = stored == nullptr ? 0 : width_of(stored->dtype);
  const auto elements = static_cast<size_t>(rank.ranges[tensor].size());
  if (width == 0 || stored->bytes.size() != elements * width) {
    throw bad_input(rank.file->path().string(),
                    stored == nullptr ? "no tensor " + name : name + " of another type or size",
                    fmt::format("{} elements that satune wrote", elements));
  }
  if (stored->dtype == "U8") return decode_from(rank, *stored, kind, tensor, range, out);
  const StoredTensor part =
      part_of(*stored, static_cast<size_t>(range.begin - rank.ranges[tensor].begin) * width,
              static_cast<size_t>(range.size()) * width);
  if (stored->dtype == "F32") {
    std::memcpy(out, part.bytes.data(), part.bytes.size());
  } else {
    std::vector<uint16_t> bits(static_cast<size_t>(range.size()));  // of any alignment in the file
    std::memcpy(bits.data(), part.bytes.data(), part.bytes.size());
    widen_bf16(bits.data(), out, range.size());
  }
  rank.file->release(part);
}

void SnapshotReader::decode_from(const RankFile& rank, const StoredTensor& codes, std::string_view kind,
                                 size_t tensor, ElementRange range, float* out) const {
  const std::string name = fmt::format("{}_scale.{}", kind, table_.tensors()[tensor].name);
  const ElementRange owned = rank.ranges[tensor];
  const int64_t offset = places_.offset(tensor), first_block = (offset + owned.begin) / kStateBlock;
  const int64_t blocks = (offset + owned.end + kStateBlock - 1) / kStateBlock - first_block;
  const StoredTensor* scales = rank.file->find(name);
  if (scales == nullptr || scales->dtype != "F32" ||
      scales->bytes.size() != static_cast<size_t>(blocks) * sizeof(float)) {
    throw bad_input(rank.file->path().string(),
                    scales == nullptr ? "no tensor " + name : name + " of another type or size",
                    fmt::format("{} fp32 scales", blocks));
  }
  const auto decode = kind == "exp_avg_sq" ? decode_second_moments : decode_first_moments;
  for (int64_t begin = range.begin; begin < range.end;) {
    const int64_t block = (offset + begin) / kStateBlock;
    const int64_t end = std::min(range.end, (block + 1) * kStateBlock - offset);
    float scale = 0;
    std::memcpy(&scale, scales->bytes.data() + static_cast<size_t>(block - first_block) * sizeof(float),
                sizeof(scale));
    decode(reinterpret_cast<const uint8_t*>(codes.bytes.data()) + (begin - owned.begin), scale,
           out + (begin - range.begin), end - begin);
    begin = end;
  }
  rank.file->release(
      part_of(codes, static_cast<size_t>(range.begin - owned.begin), static_cast<size_t>(range.size())));
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
