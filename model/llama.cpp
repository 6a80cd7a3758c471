#include "model/llama.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "model/activation_offload.h"
#include "model/layer.h"
#include "model/ops/embedding.h"
#include "model/ops/linear.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/rms_norm.h"

namespace satune {

struct Llama::Impl {
  ModelConfig config;
  Weights weights;
  std::vector<LayerWeights> layers;
  size_t embedding = 0, final_norm = 0, head = 0;  ///< table indices; a tied head is the embedding
  RopeTable rope;
  AttentionChoice attention;
  std::optional<ActivationOffload> offload;
  std::optional<Fp8Weights> fp8;

  int num_layers() const { return static_cast<int>(layers.size()); }
  int head_segment() const { return num_layers() + 1; }
  LayerContext context(const DeviceBatch& batch, SegmentHooks& hooks) {
    return {config, weights, rope, batch, attention, hooks.trace()};
  }

  /// Makes the table reach the batch's longest document, with what it continues.
  void extend_rope(const DeviceBatch& batch) {
    int64_t longest = 0;
    std::vector<int64_t> lengths;
    for (size_t i = 0; i + 1 < batch.document_starts.size(); ++i) {
      const int64_t parent = batch.parents.empty() ? -1 : batch.parents[i];
      lengths.push_back(batch.document_starts[i + 1] - batch.document_starts[i] +
                        (parent < 0 ? 0 : lengths[parent]));
      longest = std::max(longest, lengths.back());
    }
    const int64_t have = rope.cos_PD2.defined() ? rope.cos_PD2.size(0) : 0;
    if (longest > have) {
      rope = make_rope_table(config, std::max(longest, 2 * have), weights.type(), weights.device());
    }
  }

  /// Lowest segment with a trained tensor: the backward ends there. No segment at all: one past the head.
  int lowest_trained_segment() const {
    for (size_t i = 0; i < weights.table.tensors().size(); ++i) {
      if (weights.trained.selected(i)) return weights.table.tensors()[i].segment;
    }
    return head_segment() + 1;
  }

  at::Tensor embed(const DeviceBatch& batch) {
    return embedding_forward(weights.tensor(embedding), batch.tokens_N);
  }

  RmsNormOut norm(const at::Tensor& x_NC) {
    return rms_norm_forward(x_NC, weights.tensor(final_norm), config.rms_norm_eps);
  }

  at::Tensor hidden_states(const DeviceBatch& batch, SegmentHooks& hooks, const Observer& observer);
  /// Layers and table indices, once config and weights are there.
  void bind();
};

namespace {

size_t index_of(const TensorTable& table, std::string_view name) {
  const TensorInfo* info = table.find(name);
  TORCH_CHECK(info != nullptr, "no tensor ", name);
  return info - table.tensors().data();
}

LayerContext training_context(Llama::Impl& model, const DeviceBatch& batch, SegmentHooks& hooks) {
  LayerContext context = model.context(batch, hooks);
  if (model.fp8) context.fp8 = &*model.fp8;
  return context;
}

/// The records of one micro-batch, from the forward to the backward.
class Pass {
 public:
  Pass(Llama::Impl& model, const DeviceBatch& batch, const std::vector<Recording>& recording,
       SegmentHooks& hooks, ParameterBuffers& gradients, bool accumulate);
  ~Pass();
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  LossSums run(double loss_scale);

 private:
  at::Tensor forward();
  void forward_layer(int layer, at::Tensor& x_NC);
  CrossEntropyGradients head(const at::Tensor& x_NC, double loss_scale, StreamGradient& d_x);
  void backward_layer(int layer, StreamGradient& d_x);
  void backward_embedding(const at::Tensor& d_x_NC);
  const LayerRecord* anchor_of(int layer) const;

  Llama::Impl& model_;
  const DeviceBatch& batch_;
  const std::vector<Recording>& recording_;
  SegmentHooks& hooks_;
  ParameterBuffers& gradients_;
  bool accumulate_;
  int lowest_;
  LayerContext context_;
  std::vector<LayerRecord> records_;
  std::vector<SpanGradient> spans_;  ///< by anchor
  ActivationOffload* offload_;       ///< nullptr = records stay on the device
};

Pass::Pass(Llama::Impl& model, const DeviceBatch& batch, const std::vector<Recording>& recording,
           SegmentHooks& hooks, ParameterBuffers& gradients, bool accumulate)
    : model_(model),
      batch_(batch),
      recording_(recording),
      hooks_(hooks),
      gradients_(gradients),
      accumulate_(accumulate),
      lowest_(model.lowest_trained_segment()),
      context_(training_context(model, batch, hooks)),
      records_(model.layers.size()),
      spans_(model.layers.size()),
      offload_(model.offload ? &*model.offload : nullptr) {
  TORCH_CHECK(recording.size() == model.layers.size(), "one recording policy per layer");
  if (offload_ != nullptr) offload_->trace_to(context_.trace);
}

Pass::~Pass() {
  if (offload_ == nullptr) return;
  try {
    offload_->forget();  // records_ are its slots
  } catch (...) {
    // A card that cannot even be told to wait has failed before, and is given no work any more.
  }
}

const LayerRecord* Pass::anchor_of(int layer) const {
  const SharingPlan& sharing = model_.config.sharing;
  return sharing.is_shared(layer) ? &records_[sharing.source(layer)] : nullptr;
}

void Pass::forward_layer(int layer, at::Tensor& x_NC) {
  const int segment = layer + 1;
  hooks_.before_forward(segment);
  LayerRecord& record = records_[layer];
  context_.keep_inputs = recording_[layer] == Recording::kKeep && segment >= lowest_;
  x_NC = layer_forward(context_, model_.layers[layer], layer, x_NC, anchor_of(layer), record);
  hooks_.after_forward(segment);
  const bool is_anchor = model_.layers[layer].is_anchor;
  if (segment >= lowest_) {
    thin(record, recording_[layer], is_anchor);
    // The last layer's backward is next.
    if (offload_ != nullptr && layer + 1 < model_.num_layers()) {
      offload_->store(layer, own_activations(record, is_anchor, anchor_of(layer) != nullptr));
    }
  } else {
    // No backward will reach this layer; what its span reads is all that stays.
    thin(record, Recording::kRecompute, is_anchor);
    record.x_NC.reset();
  }
}

at::Tensor Pass::forward() {
  hooks_.before_forward(0);
  at::Tensor x_NC = model_.embed(batch_);
  hooks_.after_forward(0);
  for (int layer = 0; layer < model_.num_layers(); ++layer) forward_layer(layer, x_NC);
  if (offload_ != nullptr) offload_->settle();
  return x_NC;
}

CrossEntropyGradients Pass::head(const at::Tensor& x_NC, double loss_scale, StreamGradient& d_x) {
  const int segment = model_.head_segment();
  hooks_.before_forward(segment);
  const RmsNormOut norm = traced(context_.trace, part::kNorm, [&] { return model_.norm(x_NC); });
  hooks_.after_forward(segment);
  hooks_.before_backward(segment);
  const at::Tensor d_head = gradients_.selected(model_.head) ? gradients_.tensor(model_.head) : at::Tensor();
  CrossEntropyGradients out = traced(context_.trace, part::kLoss, [&] {
    return linear_cross_entropy_backward(norm.y_NC, model_.weights.tensor(model_.head), batch_.targets,
                                         loss_scale, d_head, accumulate_);
  });
  const at::Tensor d_norm =
      gradients_.selected(model_.final_norm) ? gradients_.tensor(model_.final_norm) : at::Tensor();
  d_x.d_NC = traced(context_.trace, part::kNorm, [&] {
    return rms_norm_backward(out.d_hidden_NC, x_NC, model_.weights.tensor(model_.final_norm), norm.rstd_N, {},
                             d_norm, accumulate_, context_.if_fp8(d_x.largest));
  });
  hooks_.after_backward(segment);
  return out;
}

void Pass::backward_layer(int layer, StreamGradient& d_x) {
  const int segment = layer + 1;
  const int source = model_.config.sharing.source(layer);
  hooks_.before_backward(segment);
  if (offload_ != nullptr) {
    offload_->restore(layer);
    if (segment > std::max(lowest_, 1)) offload_->fetch(layer - 1);
  }
  d_x = layer_backward(context_, model_.layers[layer], layer, records_[layer], anchor_of(layer),
                       recording_[layer], d_x, spans_[source], gradients_, accumulate_, segment > lowest_);
  hooks_.after_backward(segment);
  records_[layer] = {};
}

void Pass::backward_embedding(const at::Tensor& d_x_NC) {
  hooks_.before_backward(0);
  // A tied head has already written its part into the same gradient.
  const bool tied = model_.head == model_.embedding;
  embedding_backward(d_x_NC, batch_.tokens_N, gradients_.tensor(model_.embedding), accumulate_ || tied);
  hooks_.after_backward(0);
}

LossSums zero_sums(const at::Device& device) {
  const auto options = at::TensorOptions(device);
  return {at::zeros({}, options.dtype(at::kDouble)), at::zeros({}, options.dtype(at::kLong))};
}

/// The hooks of a pass over nothing: what Pass::run() calls, in its order. Gradients are zeros.
LossSums idle_pass(const Llama::Impl& model, const ParameterBuffers& gradients, bool accumulate,
                   SegmentHooks& hooks) {
  const int head = model.head_segment();
  for (int segment = 0; segment <= head; ++segment) {
    hooks.before_forward(segment);
    hooks.after_forward(segment);
  }
  for (int segment = head; segment >= std::min(model.lowest_trained_segment(), head); --segment) {
    hooks.before_backward(segment);
    if (!accumulate) gradients.flat(segment).zero_();
    hooks.after_backward(segment);
  }
  return zero_sums(model.weights.device());
}

LossSums Pass::run(double loss_scale) {
  at::Tensor x_NC = forward();
  StreamGradient d_x;
  const CrossEntropySums sums = head(x_NC, loss_scale, d_x).sums;
  x_NC.reset();
  for (int layer = model_.num_layers() - 1; layer + 1 >= std::max(lowest_, 1); --layer) {
    backward_layer(layer, d_x);
  }
  if (lowest_ == 0) backward_embedding(d_x.d_NC);
  return {sums.loss, sums.correct};
}

}  // namespace

at::Tensor Llama::Impl::hidden_states(const DeviceBatch& batch, SegmentHooks& hooks,
                                      const Observer& observer) {
  hooks.before_forward(0);
  at::Tensor x_NC = embed(batch);
  hooks.after_forward(0);
  if (observer) observer("embed", x_NC);
  const LayerContext layer_context = context(batch, hooks);
  std::vector<LayerRecord> anchors(layers.size());
  for (int layer = 0; layer < num_layers(); ++layer) {
    hooks.before_forward(layer + 1);
    LayerRecord record;
    const int source = config.sharing.source(layer);
    x_NC = layer_forward(layer_context, layers[layer], layer, x_NC,
                         source == layer ? nullptr : &anchors[source], record, observer);
    hooks.after_forward(layer + 1);
    if (layers[layer].is_anchor) {
      anchors[layer].q_NHD = record.q_NHD;
      anchors[layer].k_NKD = record.k_NKD;
    }
  }
  hooks.before_forward(head_segment());
  at::Tensor normed = traced(hooks.trace(), part::kNorm, [&] { return norm(x_NC).y_NC; });
  if (observer) observer("final_norm", normed);
  return normed;
}

void Llama::Impl::bind() {
  for (int layer = 0; layer < config.num_hidden_layers; ++layer)
    layers.push_back(bind_layer(weights, layer, config.sharing));
  embedding = index_of(weights.table, "model.embed_tokens.weight");
  final_norm = index_of(weights.table, "model.norm.weight");
  head = config.tie_word_embeddings ? embedding : index_of(weights.table, "lm_head.weight");
}

Llama::Llama(ModelConfig config, std::vector<bool> trained_mask, at::ScalarType type, at::Device device,
             const BufferLayout& layout)
    : impl_(std::make_unique<Impl>()) {
  impl_->config = std::move(config);
  impl_->weights = Weights(TensorTable(impl_->config), std::move(trained_mask), type, device, layout);
  impl_->bind();
}

Llama::Llama(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Llama Llama::with_sharing(SharingPlan plan) const {
  TORCH_CHECK(impl_->config.sharing.empty(), "the model shares attention already");
  auto impl = std::make_unique<Impl>();
  impl->config = impl_->config;
  impl->config.sharing = std::move(plan);
  impl->weights = impl_->weights.restricted(TensorTable(impl->config));
  impl->bind();
  return Llama(std::move(impl));
}

Llama::~Llama() = default;
Llama::Llama(Llama&&) noexcept = default;

const ModelConfig& Llama::config() const {
  return impl_->config;
}
const TensorTable& Llama::table() const {
  return impl_->weights.table;
}
Weights& Llama::weights() {
  return impl_->weights;
}
const Weights& Llama::weights() const {
  return impl_->weights;
}

const AttentionChoice& Llama::attention() const {
  return impl_->attention;
}

void Llama::attend_by(const AttentionChoice& choice) {
  impl_->attention = choice;
}

void Llama::offload_activations_by(std::unique_ptr<CopyQueue> copies) {
  impl_->offload.reset();
  if (copies != nullptr) {
    impl_->offload.emplace(impl_->weights.device(), impl_->num_layers(), std::move(copies));
  }
}

void Llama::use_fp8(bool keep_weights) {
  TORCH_CHECK(impl_->weights.type() != at::kDouble, "8-bit products give no fp64");
  const int lowest_layer = std::max(impl_->lowest_trained_segment() - 1, 0);
  impl_->fp8.emplace(impl_->layers.size() * kProjectionSlots, lowest_layer * kProjectionSlots, keep_weights);
}

void Llama::weights_changed() {
  if (impl_->fp8) impl_->fp8->changed();
}

Llama::Projections Llama::projections() const {
  Projections count;
  for (const LayerWeights& layer : impl_->layers) {
    for (const FusedProjection* projection : layer.projections()) {
      ++count.all;
      if (projection->takes_fp8()) ++count.take_fp8;
    }
  }
  return count;
}

bool Llama::tied() const {
  return impl_->head == impl_->embedding;
}

ParameterBuffers Llama::make_gradients(at::ScalarType type, const BufferLayout& layout) const {
  std::vector<bool> trained(table().tensors().size());
  for (size_t i = 0; i < trained.size(); ++i) trained[i] = impl_->weights.trained.selected(i);
  return ParameterBuffers(table(), std::move(trained), type, impl_->weights.device(), layout);
}

LossSums Llama::forward_backward(const DeviceBatch& batch, double loss_scale, ParameterBuffers& gradients,
                                 bool accumulate, const std::vector<Recording>& recording,
                                 SegmentHooks& hooks) {
  if (batch.targets.count() == 0) return idle_pass(*impl_, gradients, accumulate, hooks);
  impl_->extend_rope(batch);
  return Pass(*impl_, batch, recording, hooks, gradients, accumulate).run(loss_scale);
}

LossSums Llama::evaluate(const DeviceBatch& batch, SegmentHooks& hooks) {
  if (batch.tokens_N.numel() == 0) {
    for (int segment = 0; segment <= impl_->head_segment(); ++segment) {
      hooks.before_forward(segment);
      hooks.after_forward(segment);
    }
    return zero_sums(impl_->weights.device());
  }
  impl_->extend_rope(batch);
  const at::Tensor hidden_NC = impl_->hidden_states(batch, hooks, {});
  const CrossEntropySums sums = traced(hooks.trace(), part::kLoss, [&] {
    return linear_cross_entropy_forward(hidden_NC, impl_->weights.tensor(impl_->head), batch.targets);
  });
  hooks.after_forward(impl_->head_segment());
  return {sums.loss, sums.correct};
}

LossSums Llama::evaluate(const DeviceBatch& batch) {
  SegmentHooks none;
  return evaluate(batch, none);
}

at::Tensor Llama::token_losses(const DeviceBatch& batch) {
  return losses_by_row(target_losses(batch), batch.targets, batch.tokens_N.size(0));
}

at::Tensor Llama::target_losses(const DeviceBatch& batch) {
  SegmentHooks none;
  impl_->extend_rope(batch);
  const at::Tensor hidden_NC = impl_->hidden_states(batch, none, {});
  at::Tensor losses_M;
  linear_cross_entropy_forward(hidden_NC, impl_->weights.tensor(impl_->head), batch.targets, &losses_M);
  return losses_M;
}

at::Tensor Llama::logits(const DeviceBatch& batch, const Observer& observer) {
  SegmentHooks none;
  impl_->extend_rope(batch);
  const at::Tensor hidden_NC = impl_->hidden_states(batch, none, observer);
  at::Tensor logits_NV = linear_forward(hidden_NC, impl_->weights.tensor(impl_->head));
  if (observer) observer("logits", logits_NV);
  return logits_NV;
}

}  // namespace satune
