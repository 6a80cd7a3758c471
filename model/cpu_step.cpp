#include "model/cpu_step.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "model/ops/decode_kernels.h"
#include "model/ops/rms_norm_kernels.h"
#include "model/ops/rope_kernels.h"
#include "model/ops/swiglu_kernels.h"

namespace satune {
namespace {

constexpr int64_t kTaskElements = 16384;  // multiplications that make a thread worth its start

/// A matrix that may lie in several pieces: its outputs, one piece after another.
template <typename T>
struct Projection {
  struct Piece {
    const T* weight;
    int64_t outputs;
  };
  std::vector<Piece> pieces;
  int64_t inputs = 0, outputs = 0;

  void add(const at::Tensor& weight_OI) {
    pieces.push_back({weight_OI.const_data_ptr<T>(), weight_OI.size(0)});
    inputs = weight_OI.size(1);
    outputs += weight_OI.size(0);
  }
};

template <typename T>
struct LayerPointers {
  const T *input_norm, *post_attention_norm;
  Projection<T> qkv, output, gate_up, down;
  T *keys = nullptr, *values = nullptr;  ///< keys: null for a shared layer
};

template <typename T>
class Step final : public CpuStep {
 public:
  Step(const Llama& model, const std::vector<LayerWeights>& layers, const RopeTable& rope,
       const KvCache& cache, int64_t most_rows);
  void run(const StepRows& rows, int64_t first_logits, float* logits, AttentionCounts& counts) override;

 private:
  int64_t heads() const { return config_.num_attention_heads; }
  int64_t kv_heads() const { return config_.num_key_value_heads; }
  /// Where head `head` of a row's sequence begins in a layer's cache.
  int64_t cache_offset(int64_t sequence, int64_t head) const {
    return (sequence * kv_heads() + head) * capacity_ * config_.head_dim;
  }
  void norm(const T* x, const T* weight, int64_t rows);
  void project(const T* x, int64_t rows, const Projection<T>& projection, const T* residual, T* y);
  void attend(const LayerPointers<T>& layer, const StepRows& rows);
  void attend_head(const LayerPointers<T>& layer, const StepRows& rows, int64_t row, int64_t head);
  void remember(const LayerPointers<T>& layer, const StepRows& rows, int64_t row, const T* qkv);

  const ModelConfig& config_;
  const T *embedding_, *final_norm_;
  Projection<T> head_;
  std::vector<LayerPointers<T>> layers_;
  const float *cos_, *sin_;
  int64_t capacity_;
  std::vector<T> x_, normed_, qkv_, attended_, gate_up_, act_, logits_;
  std::vector<float> wide_, products_, rstd_, queries_;
  at::Tensor weights_;  ///< [rows, H, capacity]: of the layer that computed last, which its span follows
};

template <typename T>
Step<T>::Step(const Llama& model, const std::vector<LayerWeights>& layers, const RopeTable& rope,
              const KvCache& cache, int64_t most_rows)
    : config_(model.config()),
      cos_(rope.cos_PD2.const_data_ptr<float>()),
      sin_(rope.sin_PD2.const_data_ptr<float>()),
      capacity_(cache.values.front().size(2)) {
  const Weights& weights = model.weights();
  const at::Tensor& embedding = weights.tensor("model.embed_tokens.weight");
  embedding_ = embedding.const_data_ptr<T>();
  final_norm_ = weights.tensor("model.norm.weight").template const_data_ptr<T>();
  head_.add(config_.tie_word_embeddings ? embedding : weights.tensor("lm_head.weight"));
  int64_t widest = head_.outputs, deepest = config_.hidden_size;
  for (size_t l = 0; l < layers.size(); ++l) {
    LayerPointers<T>& layer = layers_.emplace_back();
    layer.input_norm = weights.tensor(layers[l].input_norm).template const_data_ptr<T>();
    layer.post_attention_norm = weights.tensor(layers[l].post_attention_norm).template const_data_ptr<T>();
    for (const at::Tensor& weight : layers[l].qkv.weights()) layer.qkv.add(weight);
    for (const at::Tensor& weight : layers[l].gate_up.weights()) layer.gate_up.add(weight);
    layer.output.add(layers[l].output.weights().at(0));
    layer.down.add(layers[l].down.weights().at(0));
    if (cache.keys[l].defined()) layer.keys = cache.keys[l].template mutable_data_ptr<T>();
    layer.values = cache.values[l].template mutable_data_ptr<T>();
    for (const Projection<T>* projection : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) {
      widest = std::max(widest, projection->outputs);
      deepest = std::max(deepest, projection->inputs);
    }
  }
  const auto rows = static_cast<size_t>(most_rows);
  x_.resize(rows * config_.hidden_size);
  normed_.resize(rows * config_.hidden_size);
  qkv_.resize(rows * (config_.query_size() + 2 * config_.key_value_size()));
  attended_.resize(rows * config_.query_size());
  gate_up_.resize(rows * 2 * config_.intermediate_size);
  act_.resize(rows * config_.intermediate_size);
  logits_.resize(rows * head_.outputs);
  wide_.resize(rows * deepest);
  products_.resize(rows * widest);
  rstd_.resize(rows);
  queries_.resize(rows * config_.query_size());
  weights_ = at::empty({most_rows, heads(), capacity_}, at::kFloat);
}

template <typename T>
void Step<T>::norm(const T* x, const T* weight, int64_t rows) {
  kernels::rms_norm_forward<T>(x, weight, normed_.data(), rstd_.data(), 0, rows, config_.hidden_size,
                               config_.rms_norm_eps);
}

template <typename T>
void Step<T>::project(const T* x, int64_t rows, const Projection<T>& projection, const T* residual, T* y) {
  const int64_t inputs = projection.inputs, all = projection.outputs;
  kernels::widen_for_products<T>(x, rows, inputs, 1.0f, wide_.data());
  at::parallel_for(0, all, std::max<int64_t>(1, kTaskElements / inputs), [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // output of the piece's first row
    for (const auto& piece : projection.pieces) {
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, piece.outputs);
      if (from < to)
        kernels::few_row_products<T>(wide_.data(), rows, piece.weight, inputs, from, to,
                                     products_.data() + first, all);
      first += piece.outputs;
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * all + begin;
      kernels::narrow<T>(products_.data() + at, residual ? residual + at : nullptr, y + at, end - begin);
    }
  });
}

template <typename T>
void Step<T>::remember(const LayerPointers<T>& layer, const StepRows& rows, int64_t row, const T* qkv) {
  const int64_t D = config_.head_dim, width = layer.qkv.outputs;
  const T* values = qkv + (row + 1) * width - config_.key_value_size();
  const T* keys = values - config_.key_value_size();
  for (int64_t head = 0; head < kv_heads(); ++head) {
    const int64_t at = cache_offset(rows.sequences[row], head) + rows.positions[row] * D;
    std::copy_n(values + head * D, D, layer.values + at);
    if (layer.keys) std::copy_n(keys + head * D, D, layer.keys + at);
  }
}

/// One key/value head of one row with its group of query heads. A layer that computes leaves its weights for
/// those that follow.
template <typename T>
void Step<T>::attend_head(const LayerPointers<T>& layer, const StepRows& rows, int64_t row, int64_t head) {
  const int64_t D = config_.head_dim, group = heads() / kv_heads(), length = rows.positions[row] + 1;
  const int64_t first_head = row * heads() + head * group, cached = cache_offset(rows.sequences[row], head);
  float* weights = weights_.mutable_data_ptr<float>() + first_head * capacity_;
  if (layer.keys) {
    kernels::few_row_products<T>(queries_.data() + first_head * D, group, layer.keys + cached, D, 0, length,
                                 weights, capacity_);
    for (int64_t g = 0; g < group; ++g) kernels::softmax(weights + g * capacity_, length);
  }
  float* out = products_.data() + first_head * D;
  kernels::weighted_sums<T>(weights, capacity_, group, layer.values + cached, length, D, out);
  kernels::narrow<T>(out, nullptr, attended_.data() + first_head * D, group * D);
}

template <typename T>
void Step<T>::attend(const LayerPointers<T>& layer, const StepRows& rows) {
  const auto M = static_cast<int64_t>(rows.tokens.size());
  const int64_t D = config_.head_dim, width = layer.qkv.outputs;
  if (layer.keys)
    kernels::rope_apply<T>(qkv_.data(), width, rows.positions.data(), cos_, sin_, 0, M, heads() + kv_heads(),
                           D, 1);
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(D)));
  int64_t longest = 0;
  for (int64_t row = 0; row < M; ++row) {
    remember(layer, rows, row, qkv_.data());
    if (layer.keys)
      kernels::widen_for_products<T>(qkv_.data() + row * width, heads(), D, scale,
                                     queries_.data() + row * config_.query_size());
    longest = std::max(longest, rows.positions[row] + 1);
  }
  const int64_t work = 2 * longest * D * heads() / kv_heads();
  at::parallel_for(0, M * kv_heads(), std::max<int64_t>(1, kTaskElements / work),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t task = begin; task < end; ++task)
                       attend_head(layer, rows, task / kv_heads(), task % kv_heads());
                   });
}

template <typename T>
void Step<T>::run(const StepRows& rows, int64_t first_logits, float* logits, AttentionCounts& counts) {
  const auto M = static_cast<int64_t>(rows.tokens.size());
  const int64_t C = config_.hidden_size;
  for (int64_t row = 0; row < M; ++row)
    std::copy_n(embedding_ + rows.tokens[row] * C, C, x_.data() + row * C);
  for (const LayerPointers<T>& layer : layers_) {
    norm(x_.data(), layer.input_norm, M);
    project(normed_.data(), M, layer.qkv, nullptr, qkv_.data());
    attend(layer, rows);
    (layer.keys ? counts.computed : counts.reused) += M;
    project(attended_.data(), M, layer.output, x_.data(), x_.data());
    norm(x_.data(), layer.post_attention_norm, M);
    project(normed_.data(), M, layer.gate_up, nullptr, gate_up_.data());
    kernels::swiglu_forward<T>(gate_up_.data(), act_.data(), 0, M, config_.intermediate_size);
    project(act_.data(), M, layer.down, x_.data(), x_.data());
  }
  const int64_t wanted = M - first_logits;
  norm(x_.data() + first_logits * C, final_norm_, wanted);
  project(normed_.data(), wanted, head_, nullptr, logits_.data());
  for (int64_t i = 0; i < wanted * head_.outputs; ++i) logits[i] = kernels::load(logits_[i]);
}

}  // namespace

bool CpuStep::supports(const Llama& model) {
  const at::ScalarType type = model.weights().type();
  return model.weights().device().is_cpu() && (type == at::kFloat || type == at::kBFloat16);
}

std::unique_ptr<CpuStep> CpuStep::make(const Llama& model, const std::vector<LayerWeights>& layers,
                                       const RopeTable& rope, const KvCache& cache, int64_t most_rows) {
  TORCH_CHECK(supports(model));
  if (model.weights().type() == at::kFloat)
    return std::make_unique<Step<float>>(model, layers, rope, cache, most_rows);
  return std::make_unique<Step<c10::BFloat16>>(model, layers, rope, cache, most_rows);
}

}  // namespace satune
