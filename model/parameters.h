// Flat storage: one buffer per segment, named tensors are views into it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "model/files/hf_directory.h"
#include "model/files/tensor_table.h"

namespace satune {

/// torch's element type of a DType and back.
at::ScalarType scalar_type(DType dtype);
DType dtype_of(at::ScalarType type);

/// How flat buffers lie in memory.
struct BufferLayout {
  int64_t alignment = 64;  ///< elements: every segment's buffer is padded to a multiple of it
  bool resident = true;    ///< false: shapes only; memory comes and goes with attach() and detach()
};

/// One value per parameter of the selected tensors: weights, gradients, a moment. Per segment one 1-D
/// buffer; its tensors lie in table order (q,k,v contiguous; gate,up contiguous; undecayed last), padding
/// only at the end.
class ParameterBuffers {
 public:
  ParameterBuffers() = default;
  /// Zero-filled where resident. `selected[i]` belongs to table.tensors()[i].
  ParameterBuffers(const TensorTable& table, std::vector<bool> selected, at::ScalarType type,
                   at::Device device, const BufferLayout& layout = {});

  int num_segments() const { return static_cast<int>(flat_.size()); }
  const at::Tensor& flat(int segment) const { return flat_[segment]; }  ///< 1-D; may have 0 elements
  /// Elements of a segment's buffer that belong to tensors; the rest is padding.
  int64_t used(int segment) const { return used_[segment]; }
  /// View with the table's shape; undefined if the tensor is not selected.
  const at::Tensor& tensor(size_t index) const { return views_[index]; }
  /// First element of the tensor inside its segment's buffer.
  int64_t offset(size_t index) const { return offsets_[index]; }
  bool selected(size_t index) const { return selected_[index]; }
  const TensorTable& table() const { return table_; }
  at::ScalarType type() const { return type_; }
  int64_t numel() const;
  void zero() const;

  /// Gives a segment that is not resident the memory of `memory` (1-D, of the type, at least flat().numel()
  /// elements), which is kept alive until detach(). Every view of the segment, wherever it was taken, reads
  /// and writes there from now on; without memory there is nothing to read.
  void attach(int segment, at::Tensor memory);
  /// Views of the tensors that `table` has too, over the same memory, for reading. A segment's buffer has
  /// holes then, where the others lie.
  ParameterBuffers restricted(const TensorTable& table) const;

  /// Returns the memory; undefined where there was none.
  at::Tensor detach(int segment);
  bool attached(int segment) const { return attached_[segment].defined(); }

 private:
  TensorTable table_;
  at::ScalarType type_ = at::kFloat;
  std::vector<bool> selected_;
  std::vector<at::Tensor> flat_, views_;
  std::vector<at::Tensor> attached_;  ///< by segment; defined where memory was attached
  std::vector<int64_t> offsets_, used_;
};

/// A model's weights: trained tensors in one set of buffers, frozen ones in another.
struct Weights {
  TensorTable table;
  ParameterBuffers trained, frozen;

  Weights() = default;
  /// `trained_mask` empty = all trained.
  Weights(TensorTable table, std::vector<bool> trained_mask, at::ScalarType type, at::Device device,
          const BufferLayout& layout = {});
  Weights restricted(const TensorTable& subset) const;  ///< as ParameterBuffers::restricted
  const at::Tensor& tensor(size_t index) const;
  const at::Tensor& tensor(std::string_view name) const;  ///< undefined for an unknown name
  at::ScalarType type() const;
  at::Device device() const;
};

/// Which tensors of the table a list of `unfrozen_parameters` patterns trains. A pattern is a regular
/// expression matched from the start of the tensor's name, as axolotl does ("model.layers.2[3-6].",
/// "lm_head.weight$"); an empty list trains all. Throws BadInput for a pattern that matches nothing.
std::vector<bool> match_unfrozen(const TensorTable& table, const std::vector<std::string>& patterns);

/// Fills `target` (1-D, any dtype and device) with elements [begin, begin + target.numel()) of a checkpoint's
/// tensor, piece by piece; source pages are released as they are used.
void load_elements(const at::Tensor& target, const Checkpoint& checkpoint, const TensorInfo& info,
                   int64_t begin);

/// One log line about what a checkpoint holds and a model does not read. Checks the checkpoint as loading
/// does.
void report_unused_tensors(const Checkpoint& checkpoint, const TensorTable& table, bool dense_source);

/// Fills `weights` from a checkpoint, tensor by tensor, converting the dtype; source pages are released as
/// they are used, so that the peak stays near the parameter bytes kept. When the model shares attention and
/// the checkpoint is dense, q_proj and k_proj of shared layers are left out.
void load_weights(Weights& weights, const Checkpoint& checkpoint, bool dense_source);

/// Random initialisation as transformers does: normal(0, initializer_range) for matrices, ones for norms;
/// each tensor draws from its own generator keyed by (seed, name), so that values do not depend on order.
void initialise_weights(Weights& weights, double initializer_range, uint64_t seed);

/// Writes an export directory (atomically): weights in `dtype`, streamed shard by shard, and everything
/// write_export_files() adds. `read(i)` returns table tensor i (any dtype, any device).
void export_model(const std::filesystem::path& directory, const ModelConfig& config, const TensorTable& table,
                  const std::function<at::Tensor(size_t)>& read, DType dtype, const ExportOptions& options);

}  // namespace satune
