// A Llama decoder with Shared Attention as explicit forward and backward passes over segments.
//
// Shape suffixes: N tokens of the micro-batch (documents end to end), B rows, T tokens of a row, H query
// heads, K key/value heads, D head_dim, C hidden size, F ffn size, V vocabulary, L layers.
// Segments: 0 embedding, 1..L decoder layers, L + 1 final norm and head.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "model/copy_queue.h"
#include "model/files/model_config.h"
#include "model/ops/attention.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/parameters.h"
#include "model/step_trace.h"

namespace satune {

/// The Batch of data/batch.h on a device. The model room does not know the data room; trainer converts.
struct DeviceBatch {
  at::Tensor tokens_N;     ///< int64
  at::Tensor positions_N;  ///< int64
  Targets targets;
  std::vector<int64_t> document_starts;  ///< [documents + 1], on the host
  at::Tensor document_starts_on_card;    ///< the same, int32; undefined on the CPU
  /// By document, the earlier one that it continues (-1 = none): its tokens attend to that document and to
  /// what that one continues. Depth-first order, no empty document. Empty = none does. For passes without a
  /// backward, on the CPU.
  std::vector<int64_t> parents = {};
};

/// What a layer's forward keeps for its backward. The numbers are bitwise the same in all of them.
enum class Recording {
  kKeep,       ///< every intermediate
  kSelective,  ///< norms and SwiGLU are computed again
  kRecompute,  ///< the layer's input only (and the Q, K an anchor hands to its span)
};

/// Sums over the batch's targets, as scalars on the model's device.
struct LossSums {
  at::Tensor loss;     ///< fp64: sum of -log p(target)
  at::Tensor correct;  ///< int64: targets that are the argmax
};

/// Called around every segment's passes; sharding gathers, reduces and frees here. The default does nothing.
/// The sequence of calls depends on the model alone, never on the batch: ranks with less data, or none, make
/// the same calls.
class SegmentHooks {
 public:
  virtual ~SegmentHooks() = default;
  virtual void before_forward(int /*segment*/) {}
  virtual void after_forward(int /*segment*/) {}
  virtual void before_backward(int /*segment*/) {}
  /// The segment's weight gradients are complete (a tied embedding's only after segment 0's backward).
  virtual void after_backward(int /*segment*/) {}
  /// Who is told of the parts of each pass (model/step_trace.h); nullptr = nobody.
  virtual StepTrace* trace() { return nullptr; }
};

/// Sees intermediates by name ("embed", "layers.3.q", "layers.3.out", "final_norm", "logits") in forward
/// order; used by `satune diff` and the tests.
using Observer = std::function<void(std::string_view name, const at::Tensor& value)>;

class Llama {
 public:
  /// Allocates zeroed weights. `trained_mask` (per table tensor) empty = all trained.
  Llama(ModelConfig config, std::vector<bool> trained_mask, at::ScalarType type, at::Device device,
        const BufferLayout& layout = {});
  ~Llama();
  Llama(Llama&&) noexcept;
  /// The same weights under `plan`, for reading: no memory is taken, and the q and k of layers that share are
  /// left unread. This model has no sharing of its own and need not outlive the other.
  Llama with_sharing(SharingPlan plan) const;

  const ModelConfig& config() const;
  const TensorTable& table() const;
  Weights& weights();
  const Weights& weights() const;
  /// Gradient buffers for the trained tensors.
  ParameterBuffers make_gradients(at::ScalarType type, const BufferLayout& layout = {}) const;
  /// The head is the embedding matrix: segment 0 is read by the head's passes too, and its gradient is
  /// complete only after segment 0's backward.
  bool tied() const;

  const AttentionChoice& attention() const;
  /// From now on, in the passes of this class.
  void attend_by(const AttentionChoice& choice);
  /// From now on what a layer keeps for its backward waits for it in host memory, where `copies` bring it and
  /// from where they bring it back a layer ahead (model/activation_offload.h). nullptr: on the device.
  void offload_activations_by(std::unique_ptr<CopyQueue> copies);
  /// From now on the projections of layers whose sizes allow it (takes_fp8()) are products of 8-bit floats in
  /// forward_backward(); everything else, and what only reads the model, stays as it was. `keep_weights`:
  /// those in 8 bits, until weights_changed() (model/fp8_weights.h).
  void use_fp8(bool keep_weights);
  /// To be called after trained weights were written, before the next pass.
  void weights_changed();
  /// Layer projections, and those of them that 8-bit products take.
  struct Projections {
    int64_t all = 0, take_fp8 = 0;
  };
  Projections projections() const;

  /// Forward and backward of one micro-batch. Gradients of (loss sum * loss_scale) are written into
  /// `gradients` (accumulate = false) or added to it. `recording` holds one entry per layer. The backward
  /// ends below the lowest trained tensor. A batch without targets adds exact zeros and computes nothing, but
  /// its hooks are called all the same.
  LossSums forward_backward(const DeviceBatch& batch, double loss_scale, ParameterBuffers& gradients,
                            bool accumulate, const std::vector<Recording>& recording, SegmentHooks& hooks);

  /// Loss sums without recording anything; zeros for a batch without tokens, its hooks called all the same.
  LossSums evaluate(const DeviceBatch& batch, SegmentHooks& hooks);
  LossSums evaluate(const DeviceBatch& batch);
  /// Per-token losses [N] (0 where there is no target), fp32 (fp64 for an fp64 model).
  at::Tensor token_losses(const DeviceBatch& batch);
  /// The loss of each target of the batch [M], fp32 (fp64 for an fp64 model). A row may have several.
  at::Tensor target_losses(const DeviceBatch& batch);
  /// Logits [N, V] in the model's dtype; for tests, `diff` and small evaluations. Targets may be undefined.
  at::Tensor logits(const DeviceBatch& batch, const Observer& observer = {});

  struct Impl;  ///< in llama.cpp

 private:
  explicit Llama(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace satune
