// One table of tensor names and shapes: initialising, loading, checking, saving and exporting all read it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/files/model_config.h"

namespace satune {

enum class TensorRole {
  kEmbedding,
  kQuery,
  kKey,
  kValue,
  kOutput,
  kGate,
  kUp,
  kDown,
  kInputNorm,
  kPostAttentionNorm,
  kFinalNorm,
  kHead
};

struct TensorInfo {
  std::string name;            ///< Hugging Face's: "model.layers.3.self_attn.v_proj.weight"
  std::vector<int64_t> shape;  ///< [out, in] for projections, [C] for norms, [V, C] for embedding and head
  TensorRole role;
  int segment = 0;    ///< 0 embedding, 1..L the decoder layers, L + 1 final norm and head
  bool decay = true;  ///< weight decay applies (false for norms)

  int64_t numel() const;
};

/// Tensors in storage order: by segment; within a layer q,k,v | o | gate,up | down | norms, so that q,k,v
/// and gate,up are contiguous; the last segment holds lm_head, then the final norm. A shared layer has no q
/// and k; a tied head has no lm_head.weight.
class TensorTable {
 public:
  TensorTable() = default;
  /// Uses config.sharing.
  explicit TensorTable(const ModelConfig& config);

  std::span<const TensorInfo> tensors() const { return tensors_; }
  std::span<const TensorInfo> segment(int index) const;
  int num_segments() const { return num_segments_; }
  /// nullptr if there is none of that name.
  const TensorInfo* find(std::string_view name) const;
  int64_t parameter_count() const;

 private:
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t, std::less<>> index_;  // of tensors_, by name
  int num_segments_ = 0;
};

}  // namespace satune
