#include "model/layer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <string>

#include "model/ops/dispatch.h"
#include "model/ops/rms_norm.h"
#include "model/ops/swiglu.h"

namespace satune {
namespace {

size_t table_index(const TensorTable& table, int layer, TensorRole role) {
  const std::span<const TensorInfo> tensors = table.segment(layer + 1);
  for (const TensorInfo& tensor : tensors) {
    if (tensor.role == role) return &tensor - table.tensors().data();
  }
  TORCH_CHECK(false, "layer ", layer, " has no such tensor");
}

/// Gradient view of a norm's weight, undefined where it is frozen.
at::Tensor gradient_of(const ParameterBuffers& gradients, size_t index) {
  return gradients.selected(index) ? gradients.tensor(index) : at::Tensor();
}

void observe(const Observer& observer, int layer, const char* name, const at::Tensor& value) {
  if (observer) observer(fmt::format("layers.{}.{}", layer, name), value);
}

/// q, k and v out of the fused projection's output, q and k rotated in place.
void split_qkv(const LayerContext& context, const at::Tensor& qkv, bool is_anchor, LayerRecord& record) {
  const ModelConfig& config = context.config;
  const int64_t tokens = qkv.size(0), heads = config.num_attention_heads, kv = config.num_key_value_heads;
  const at::Tensor heads_first = qkv.view({tokens, heads + 2 * kv, config.head_dim});
  traced(context.trace, part::kRope, [&] {
    rope_apply(heads_first.narrow(1, 0, heads + kv), context.batch.positions_N, context.rope, false);
  });
  record.q_NHD = heads_first.narrow(1, 0, heads);
  record.k_NKD = heads_first.narrow(1, heads, kv);
  record.v_NKD = heads_first.narrow(1, heads + kv, kv);
  if (is_anchor) {
    // Copies, so that the span does not keep the anchor's v alive. Under every policy: the layout a kernel
    // reads must not depend on the policy if the bits are not to.
    record.q_NHD = record.q_NHD.contiguous();
    record.k_NKD = record.k_NKD.contiguous();
  }
}

bool in_fp8(const LayerContext& context, const FusedProjection& projection) {
  return context.fp8 != nullptr && projection.takes_fp8();
}

/// A forward through `projection`, with a residual where there is one. For a backward that computes nothing
/// again (`keep`) the input is kept as that will read it.
at::Tensor project(const LayerContext& context, const FusedProjection& projection, ProjectionInput& input,
                   bool keep, const at::Tensor& residual_NO = {}) {
  if (!in_fp8(context, projection)) {
    return residual_NO.defined() ? projection.forward(input.x_NI, residual_NO)
                                 : projection.forward(input.x_NI);
  }
  const at::Tensor y =
      projection.forward8(input, keep ? Fp8Layout::kBoth : Fp8Layout::kRows, residual_NO, *context.fp8);
  if (keep) input = {{}, std::move(input.x8), {}};
  return y;
}

at::Tensor project_backward(const LayerContext& context, const FusedProjection& projection,
                            const at::Tensor& d_y_NO, ProjectionInput& input,
                            const ParameterBuffers& gradients, bool accumulate, const at::Tensor& largest_d_y,
                            bool need_input = true) {
  if (!in_fp8(context, projection))
    return projection.backward(d_y_NO, input, gradients, accumulate, need_input);
  return projection.backward8(d_y_NO, input, gradients, accumulate, need_input, *context.fp8, largest_d_y);
}

/// Input norm and the projections to q, k, v.
void attend_inputs(const LayerContext& context, const LayerWeights& weights, bool shared, bool keep,
                   LayerRecord& record) {
  RmsNormOut norm = traced(context.trace, part::kNorm, [&] {
    return rms_norm_forward(record.x_NC, context.weights.tensor(weights.input_norm),
                            context.config.rms_norm_eps, context.if_fp8(record.normed_in.largest));
  });
  record.normed_in.x_NI = std::move(norm.y_NC);
  record.rstd_in_N = norm.rstd_N;
  const at::Tensor qkv = traced(context.trace, part::kQkv,
                                [&] { return project(context, weights.qkv, record.normed_in, keep); });
  if (shared) {
    record.v_NKD = qkv.view({qkv.size(0), context.config.num_key_value_heads, context.config.head_dim});
  } else {
    split_qkv(context, qkv, weights.is_anchor, record);
  }
}

void mlp_inputs(const LayerContext& context, const LayerWeights& weights, LayerRecord& record) {
  RmsNormOut norm = traced(context.trace, part::kNorm, [&] {
    return rms_norm_forward(record.mid_NC, context.weights.tensor(weights.post_attention_norm),
                            context.config.rms_norm_eps, context.if_fp8(record.normed_post.largest));
  });
  record.normed_post.x_NI = std::move(norm.y_NC);
  record.rstd_post_N = norm.rstd_N;
}

/// Everything of the forward but the last projection, which the backward does not need again.
void forward_until_act(const LayerContext& context, const LayerWeights& weights, const LayerRecord* anchor,
                       bool keep, LayerRecord& record) {
  attend_inputs(context, weights, anchor != nullptr, keep, record);
  if (anchor != nullptr) {
    record.q_NHD = anchor->q_NHD;
    record.k_NKD = anchor->k_NKD;
    const int64_t kv = record.v_NKD.size(1), wanted = record.k_NKD.size(1);
    if (wanted != kv) record.v_NKD = record.v_NKD.repeat_interleave(wanted / kv, 1);
  }
  record.attention = traced(context.trace, part::kAttention, [&] {
    return attention_forward(
        record.q_NHD, record.k_NKD, record.v_NKD, context.batch.document_starts,
        {context.attention, context.batch.document_starts_on_card, &context.batch.parents});
  });
  record.mid_NC = traced(context.trace, part::kOutput, [&] {
    // In 16 bits it stays with the record: the attention's backward reads it.
    ProjectionInput attended{record.attention.out_NHD.flatten(1), {}};
    at::Tensor mid_NC = project(context, weights.output, attended, keep, record.x_NC);
    if (keep) record.attended8 = attended.x8;
    return mid_NC;
  });
  mlp_inputs(context, weights, record);
  record.gate_up_N2F = traced(context.trace, part::kGateUp,
                              [&] { return project(context, weights.gate_up, record.normed_post, keep); });
  record.act.x_NI = traced(context.trace, part::kSwiglu, [&] {
    return swiglu_forward(record.gate_up_N2F, context.if_fp8(record.act.largest));
  });
}

/// Brings back what thin() dropped, with the kernels of the forward.
void restore(const LayerContext& context, const LayerWeights& weights, Recording recording,
             const LayerRecord* anchor, LayerRecord& record) {
  if (recording == Recording::kKeep) return;
  const TracedPart again(context.trace, part::kAgain);
  if (recording == Recording::kRecompute) {
    forward_until_act(context, weights, anchor, /*keep=*/true, record);
  } else if (recording == Recording::kSelective) {
    record.normed_in.x_NI = traced(context.trace, part::kNorm, [&] {
      return rms_norm_forward(record.x_NC, context.weights.tensor(weights.input_norm),
                              context.config.rms_norm_eps, context.if_fp8(record.normed_in.largest))
          .y_NC;
    });
    mlp_inputs(context, weights, record);
    record.act.x_NI = traced(context.trace, part::kSwiglu, [&] {
      return swiglu_forward(record.gate_up_N2F, context.if_fp8(record.act.largest));
    });
  }
}

at::Tensor mlp_backward(const LayerContext& context, const LayerWeights& weights, LayerRecord& record,
                        const StreamGradient& d_out, const ParameterBuffers& gradients, bool accumulate,
                        at::Tensor& largest_d_mid) {
  const at::Tensor d_act = traced(context.trace, part::kDown, [&] {
    return project_backward(context, weights.down, d_out.d_NC, record.act, gradients, accumulate,
                            d_out.largest);
  });
  at::Tensor largest;  // of d_gate_up
  const at::Tensor d_gate_up = traced(context.trace, part::kSwiglu, [&] {
    return swiglu_backward(d_act, record.gate_up_N2F, context.if_fp8(largest));
  });
  record.gate_up_N2F.reset();
  const at::Tensor d_normed = traced(context.trace, part::kGateUp, [&] {
    return project_backward(context, weights.gate_up, d_gate_up, record.normed_post, gradients, accumulate,
                            largest);
  });
  return traced(context.trace, part::kNorm, [&] {
    return rms_norm_backward(d_normed, record.mid_NC, context.weights.tensor(weights.post_attention_norm),
                             record.rstd_post_N, d_out.d_NC,
                             gradient_of(gradients, weights.post_attention_norm), accumulate,
                             context.if_fp8(largest_d_mid));
  });
}

/// Gradient of a layer's own q, k and v, side by side as the projection wrote them; rotated back. An anchor's
/// span is added to its own part in fp32 and rounded once.
at::Tensor own_qkv_gradient(const LayerContext& context, const LayerRecord& record, const at::Tensor& d_attn,
                            SpanGradient& span) {
  const ModelConfig& config = context.config;
  const int64_t tokens = record.x_NC.size(0), heads = config.num_attention_heads,
                kv = config.num_key_value_heads;
  at::Tensor d_qkv = at::empty({tokens, heads + 2 * kv, config.head_dim}, record.x_NC.options());
  const at::Tensor d_q = d_qkv.narrow(1, 0, heads), d_k = d_qkv.narrow(1, heads, kv);
  traced(context.trace, part::kAttention, [&] {
    attention_backward(d_attn, record.q_NHD, record.k_NKD, record.v_NKD, record.attention,
                       context.batch.document_starts, d_q, d_k, d_qkv.narrow(1, heads + kv, kv));
  });
  if (span.d_q_NHD.defined()) {
    const TracedPart sum(context.trace, part::kSpan);
    d_q.copy_(span.d_q_NHD.add_(d_q));
    d_k.copy_(span.d_k_NKD.add_(d_k));
    span = {};
  }
  traced(context.trace, part::kRope,
         [&] { rope_apply(d_qkv.narrow(1, 0, heads + kv), context.batch.positions_N, context.rope, true); });
  return d_qkv.flatten(1);
}

/// Gradient of a shared layer's v; its part of the anchor's q and k goes to the span.
at::Tensor shared_v_gradient(const LayerContext& context, const LayerRecord& record, const at::Tensor& d_attn,
                             SpanGradient& span) {
  at::Tensor d_q = at::empty(record.q_NHD.sizes(), record.q_NHD.options());
  at::Tensor d_k = at::empty(record.k_NKD.sizes(), record.k_NKD.options());
  at::Tensor d_v = at::empty(record.v_NKD.sizes(), record.v_NKD.options());
  traced(context.trace, part::kAttention, [&] {
    attention_backward(d_attn, record.q_NHD, record.k_NKD, record.v_NKD, record.attention,
                       context.batch.document_starts, d_q, d_k, d_v);
  });
  const TracedPart sum(context.trace, part::kSpan);
  if (span.d_q_NHD.defined()) {
    span.d_q_NHD.add_(d_q);
    span.d_k_NKD.add_(d_k);
  } else {
    span.d_q_NHD = d_q.to(statistics_type(d_q.scalar_type()));
    span.d_k_NKD = d_k.to(statistics_type(d_k.scalar_type()));
  }
  return d_v.flatten(1);
}

}  // namespace

LayerWeights bind_layer(const Weights& weights, int layer, const SharingPlan& sharing) {
  const auto index = [&](TensorRole role) { return table_index(weights.table, layer, role); };
  LayerWeights bound;
  bound.is_anchor = sharing.is_anchor(layer);
  bound.input_norm = index(TensorRole::kInputNorm);
  bound.post_attention_norm = index(TensorRole::kPostAttentionNorm);
  std::vector<size_t> qkv;
  for (const TensorInfo& tensor : weights.table.segment(layer + 1)) {
    if (tensor.role == TensorRole::kQuery || tensor.role == TensorRole::kKey ||
        tensor.role == TensorRole::kValue) {
      qkv.push_back(&tensor - weights.table.tensors().data());
    }
  }
  const size_t slot = layer * kProjectionSlots;
  bound.qkv = FusedProjection(weights, qkv, slot);
  bound.output = FusedProjection(weights, {index(TensorRole::kOutput)}, slot + 3);
  bound.gate_up = FusedProjection(weights, {index(TensorRole::kGate), index(TensorRole::kUp)}, slot + 4);
  bound.down = FusedProjection(weights, {index(TensorRole::kDown)}, slot + 6);
  return bound;
}

at::Tensor layer_forward(const LayerContext& context, const LayerWeights& weights, int layer,
                         const at::Tensor& x_NC, const LayerRecord* anchor, LayerRecord& record,
                         const Observer& observer) {
  record.x_NC = x_NC;
  forward_until_act(context, weights, anchor, context.keep_inputs, record);
  at::Tensor out_NC = traced(context.trace, part::kDown, [&] {
    return project(context, weights.down, record.act, context.keep_inputs, record.mid_NC);
  });
  if (anchor == nullptr) {  // a shared layer's are its anchor's
    observe(observer, layer, "q", record.q_NHD);
    observe(observer, layer, "k", record.k_NKD);
  }
  observe(observer, layer, "v", record.v_NKD);
  observe(observer, layer, "attention", record.attention.out_NHD.flatten(1));
  observe(observer, layer, "out", out_NC);
  return out_NC;
}

void thin(LayerRecord& record, Recording recording, bool is_anchor) {
  if (recording == Recording::kKeep) return;
  record.normed_in = record.normed_post = record.act = {};
  if (recording == Recording::kSelective) return;
  LayerRecord kept;
  kept.x_NC = record.x_NC;
  if (is_anchor) {
    kept.q_NHD = record.q_NHD;
    kept.k_NKD = record.k_NKD;
  }
  record = std::move(kept);
}

std::vector<at::Tensor*> own_activations(LayerRecord& record, bool is_anchor, bool is_shared) {
  std::vector<at::Tensor*> tensors = {
      &record.x_NC,   &record.v_NKD,      &record.attention.out_NHD, &record.attended8.columns_CR,
      &record.mid_NC, &record.gate_up_N2F};
  for (ProjectionInput* input : {&record.normed_in, &record.normed_post, &record.act})
    tensors.insert(tensors.end(), {&input->x_NI, &input->x8.columns_CR});
  if (!is_anchor && !is_shared) tensors.insert(tensors.end(), {&record.q_NHD, &record.k_NKD});
  std::erase_if(tensors, [](const at::Tensor* tensor) { return !tensor->defined(); });
  return tensors;
}

StreamGradient layer_backward(const LayerContext& context, const LayerWeights& weights, int layer,
                              LayerRecord& record, const LayerRecord* anchor, Recording recording,
                              const StreamGradient& d_out, SpanGradient& span,
                              const ParameterBuffers& gradients, bool accumulate, bool need_input) {
  TORCH_CHECK(record.x_NC.defined(), "layer ", layer, " was not recorded");
  restore(context, weights, recording, anchor, record);
  at::Tensor largest;  // of d_mid
  const at::Tensor d_mid = mlp_backward(context, weights, record, d_out, gradients, accumulate, largest);
  const at::Tensor d_attn = traced(context.trace, part::kOutput, [&] {
    ProjectionInput attended{record.attention.out_NHD.flatten(1), std::move(record.attended8)};
    return project_backward(context, weights.output, d_mid, attended, gradients, accumulate, largest)
        .view(record.attention.out_NHD.sizes());
  });
  const at::Tensor d_qkv = anchor == nullptr ? own_qkv_gradient(context, record, d_attn, span)
                                             : shared_v_gradient(context, record, d_attn, span);
  const at::Tensor d_input_norm = gradient_of(gradients, weights.input_norm);
  const bool need_normed = need_input || d_input_norm.defined();
  const at::Tensor d_normed = traced(context.trace, part::kQkv, [&] {
    return project_backward(context, weights.qkv, d_qkv, record.normed_in, gradients, accumulate, {},
                            need_normed);
  });
  if (!need_normed) return {};
  StreamGradient d_in;
  d_in.d_NC = traced(context.trace, part::kNorm, [&] {
    return rms_norm_backward(d_normed, record.x_NC, context.weights.tensor(weights.input_norm),
                             record.rstd_in_N, d_mid, d_input_norm, accumulate, context.if_fp8(d_in.largest));
  });
  return d_in;
}

}  // namespace satune
