// Reading a snapshot: for a resume and for `satune export SNAPSHOT OUT`.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/files/hf_directory.h"
#include "model/files/json_fields.h"
#include "model/files/model_config.h"
#include "model/files/safetensors.h"
#include "model/files/tensor_table.h"
#include "model/parameters.h"
#include "trainer/shard.h"
#include "trainer/snapshot.h"

namespace satune {

class SnapshotReader {
 public:
  /// Opens a complete snapshot written on any number of ranks. Throws BadInput naming the file when something
  /// is missing, malformed, or a range of a trained tensor is in no rank's file or in two.
  explicit SnapshotReader(std::filesystem::path folder);

  const std::filesystem::path& folder() const { return folder_; }
  int64_t step() const { return step_; }
  /// All of state.json.
  const Json& state() const { return state_; }
  /// The run's resolved settings, as settings_json() wrote them.
  const Json& settings() const { return state_.at("settings"); }
  bool has_optimizer_state() const { return has_optimizer_state_; }

  /// The trained model, with its sharing plan.
  const ModelConfig& config() const { return config_; }
  const TensorTable& table() const { return table_; }
  /// Directory the run started from: tokenizer, and the frozen tensors.
  const std::filesystem::path& base_model() const { return base_model_; }

  bool trained(size_t tensor) const { return trained_[tensor]; }
  const std::vector<bool>& trained_mask() const { return trained_; }

  /// Compares all checksums, reading every byte once. Throws BadInput naming the file.
  void verify() const;

  /// "master", "exp_avg" or "exp_avg_sq" of elements [range) of a trained tensor, whichever ranks wrote them
  /// and in whichever form: the fp32 numbers that the run computed with.
  void read(std::string_view kind, size_t tensor, ElementRange range, std::span<float> out) const;

  /// Elements [begin, begin + count) of any tensor of the table, flat, on the CPU: fp32 master of a trained
  /// one; a frozen one comes from base_model() in its stored dtype, after its checksum is compared where
  /// `begin` is 0 (BadInput when the base model is gone or changed). No page of a file stays.
  at::Tensor elements(size_t tensor, int64_t begin, int64_t count) const;

 private:
  struct RankFile {
    std::unique_ptr<SafetensorsFile> file;
    std::vector<ElementRange> ranges;  ///< per tensor of the table
  };
  void open_ranks(const JsonFields& state);
  /// Elements [range) of what a rank's file holds of a part.
  void read_from(const RankFile& rank, std::string_view kind, size_t tensor, ElementRange range,
                 float* out) const;
  /// 8-bit codes with their scales.
  void decode_from(const RankFile& rank, const StoredTensor& codes, std::string_view kind, size_t tensor,
                   ElementRange range, float* out) const;
  void check_coverage() const;
  const StoredTensor& frozen_tensor(size_t tensor) const;
  void check_frozen(size_t tensor) const;

  std::filesystem::path folder_;
  std::vector<ManifestEntry> manifest_;
  Json state_;
  int64_t step_ = 0;
  bool has_optimizer_state_ = false;
  ModelConfig config_;
  TensorTable table_;
  std::filesystem::path base_model_;
  std::vector<bool> trained_;
  ParameterBuffers places_;  ///< where elements lie in flat buffers, without memory
  std::vector<RankFile> ranks_;
  mutable std::unique_ptr<Checkpoint> base_;  ///< opened at the first frozen tensor
};

/// CRC-32C of the stored bytes of each tensor that is not trained, in table order: what ties a snapshot to
/// its base model. Empty object when all are trained.
Json frozen_checksums(const Checkpoint& base, const TensorTable& table, const std::vector<bool>& trained);

}  // namespace satune
