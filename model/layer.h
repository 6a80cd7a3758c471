// One decoder layer: its weights, what its forward records, and its two passes.
// The backward reads like the forward upside down. Shape legend: model/llama.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/llama.h"
#include "model/ops/attention.h"
#include "model/ops/rope.h"
#include "model/parameters.h"
#include "model/projection.h"

namespace satune {

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

  /// Where an op leaves the largest magnitudes of its result, if anything will be made of them.
  at::Tensor* if_fp8(at::Tensor& largest) const { return fp8 != nullptr ? &largest : nullptr; }
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

/// Gradient of the stream between two layers.
struct StreamGradient {
  at::Tensor d_NC;
  at::Tensor largest = {};  ///< to_fp8()'s, of d_NC, where products are of 8 bits
};

/// Backward of one layer. `d_out` is the gradient of its output; returns that of its input (undefined when
/// `need_input` is false). `span`: for an anchor, what its span left; for a shared layer, where it adds.
StreamGradient layer_backward(const LayerContext& context, const LayerWeights& weights, int layer,
                              LayerRecord& record, const LayerRecord* anchor, Recording recording,
                              const StreamGradient& d_out, SpanGradient& span,
                              const ParameterBuffers& gradients, bool accumulate, bool need_input);

}  // namespace satune
