// One decoder layer: its weights, what its forward records, and its two passes.
// The backward reads like the forward upside down. Shape legend: model/llama.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/fp8_weights.h"
#include "model/llama.h"
#include "model/ops/attention.h"
#include "model/ops/fp8.h"
#include "model/ops/rope.h"
#include "model/parameters.h"

namespace satune {

/// What a projection reads, and what its weights' gradients need of it later.
struct ProjectionInput {
  at::Tensor x_NI;          ///< in the model's type; undefined where 8 bits of it are enough
  Fp8Matrix x8;             ///< by columns, where it was kept so
  at::Tensor largest = {};  ///< to_fp8()'s, of x_NI
};

/// A projection made of tensors that read the same input (q,k,v; gate,up), or of one: one GEMM where they lie
/// side by side in one buffer, one each where some are frozen and live elsewhere.
class FusedProjection {
 public:
  FusedProjection() = default;
  /// Table indices of the tensors, in order. `first_slot`: of Fp8Weights, one for each GEMM from there on.
  FusedProjection(const Weights& weights, std::vector<size_t> tensors, size_t first_slot = 0);

  at::Tensor forward(const at::Tensor& x_NI) const;
  /// residual + forward(x), summed before the one rounding. Of a single GEMM.
  at::Tensor forward(const at::Tensor& x_NI, const at::Tensor& residual_NO) const;
  /// The matrices [outputs, inputs] whose outputs, one after another, are those of forward().
  std::vector<at::Tensor> weights() const;
  /// Gradient of the input; also the weights' gradients into `gradients`, after which the input is let go.
  /// `need_input` false skips the former.
  at::Tensor backward(const at::Tensor& d_y_NO, ProjectionInput& input, const ParameterBuffers& gradients,
                      bool accumulate, bool need_input) const;

  /// Whether all of its GEMMs can be of 8 bits.
  bool takes_fp8() const;
  /// The same passes in 8 bits. Forward quantises the input: `layout` says whether for its columns too, which
  /// backward makes of x_NI where there are none. `residual` may be undefined; it is added after rounding.
  at::Tensor forward8(ProjectionInput& input, Fp8Layout layout, const at::Tensor& residual_NO,
                      Fp8Weights& weights) const;
  at::Tensor backward8(const at::Tensor& d_y_NO, ProjectionInput& input, const ParameterBuffers& gradients,
                       bool accumulate, bool need_input, Fp8Weights& weights,
                       const at::Tensor& largest_d_y = {}) const;

 private:
  struct Block {
    at::Tensor weight_OI;         ///< view over one or several tensors
    std::vector<size_t> tensors;  ///< table indices it covers
    bool trained = true;
    size_t slot = 0;  ///< of Fp8Weights
  };
  /// With the columns of `y` that are each block's.
  template <typename F>
  void for_each_block(const at::Tensor& y_NO, F&& f) const {
    int64_t first = 0;
    for (const Block& block : blocks_) {
      const int64_t outputs = block.weight_OI.size(0);
      f(block, y_NO.narrow(1, first, outputs));
      first += outputs;
    }
  }

  std::vector<Block> blocks_;
};

/// Most GEMMs of a layer's projections: q, k, v; output; gate, up; down.
inline constexpr size_t kProjectionSlots = 7;

/// Views of one layer's weights. A shared layer's qkv holds v only.
struct LayerWeights {
  size_t input_norm = 0, post_attention_norm = 0;  ///< table indices
  bool is_anchor = false;
  FusedProjection qkv, output, gate_up, down;

  std::vector<const FusedProjection*> projections() const { return {&qkv, &output, &gate_up, &down}; }
};

LayerWeights bind_layer(const Weights& weights, int layer, const SharingPlan& sharing);

/// What a layer's forward leaves for its backward. Empty tensors are computed again.
struct LayerRecord {
  at::Tensor x_NC;       ///< input
  at::Tensor rstd_in_N;  ///< of the input norm
  ProjectionInput normed_in;
  at::Tensor q_NHD, k_NKD;  ///< post-RoPE; a shared layer's are its anchor's
  at::Tensor v_NKD;
  AttentionOut attention;
  Fp8Matrix attended8;  ///< attention.out in 8 bits, where it was made on the way
  at::Tensor mid_NC;    ///< residual stream between attention and MLP
  at::Tensor rstd_post_N;
  ProjectionInput normed_post;
  at::Tensor gate_up_N2F;
  ProjectionInput act;
};

/// What the passes of all layers share.
struct LayerContext {
  const ModelConfig& config;
  const Weights& weights;
  const RopeTable& rope;
  const DeviceBatch& batch;
  AttentionChoice attention = {};
  StepTrace* trace = nullptr;
  Fp8Weights* fp8 = nullptr;  ///< projections that take them are of 8 bits
  bool keep_inputs = false;   ///< of projections, for a backward that computes nothing again
};

/// Runs layer `layer`. `anchor` is the record whose q and k a shared layer reads (nullptr otherwise); where
/// its k has more heads than the layer's v (one for each query head, as assigned heads need), v is repeated
/// to match. Fills `record` completely; `thin()` then drops what the policy computes again. Returns the
/// layer's output [N, C].
at::Tensor layer_forward(const LayerContext& context, const LayerWeights& weights, int layer,
                         const at::Tensor& x_NC, const LayerRecord* anchor, LayerRecord& record,
                         const Observer& observer = {});

/// Drops what `recording` says is computed again; an anchor keeps the q and k that its span still reads.
void thin(LayerRecord& record, Recording recording, bool is_anchor);

/// Of a record, thinned or not, the tensors that grow with the width of the model and that only this layer's
/// backward reads: what may wait elsewhere until then. Not the q and k that a span shares.
std::vector<at::Tensor*> own_activations(LayerRecord& record, bool is_anchor, bool is_shared);

/// Gradients with respect to the anchor's post-RoPE q and k, summed over the span in descending order of
/// layers (fp32, fp64 for fp64 models). Undefined until a shared layer of the span has added to it.
struct SpanGradient {
  at::Tensor d_q_NHD, d_k_NKD;
};

/// Backward of one layer. `d_out_NC` is the gradient of its output; returns that of its input (undefined when
/// `need_input` is false). `span`: for an anchor, what its span left; for a shared layer, where it adds.
at::Tensor layer_backward(const LayerContext& context, const LayerWeights& weights, int layer,
                          LayerRecord& record, const LayerRecord* anchor, Recording recording,
                          const at::Tensor& d_out_NC, SpanGradient& span, const ParameterBuffers& gradients,
                          bool accumulate, bool need_input);

}  // namespace satune
