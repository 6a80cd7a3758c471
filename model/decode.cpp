#include "model/decode.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/files/error.h"
#include "model/ops/attention.h"
#include "model/ops/dispatch.h"
#include "model/ops/embedding.h"
#include "model/ops/linear.h"
#include "model/ops/rms_norm.h"
#include "model/ops/swiglu.h"

namespace satune {
namespace {

constexpr int64_t kRowsTogether = 16;  // of one sequence that steps through several tokens

/// Softmax weights of one query row over T keys: q [1, H, D], k [K, T, D] -> [K, H / K, T] in fp32 (fp64 for
/// an fp64 model). Heads of a group share their key head, so that the cache is read once and never repeated.
at::Tensor step_probabilities(const at::Tensor& q_1HD, const at::Tensor& k_KTD) {
  const int64_t K = k_KTD.size(0), D = k_KTD.size(2);
  const at::ScalarType wide = statistics_type(k_KTD.scalar_type());
  const at::Tensor q_KGD = (q_1HD.to(wide) / std::sqrt(static_cast<double>(D))).view({K, -1, D});
  return at::softmax(at::bmm(q_KGD, k_KTD.to(wide).transpose(1, 2)), -1);
}

/// [K, G, T] times v [K, T, D] -> [1, H * D] in v's type.
at::Tensor apply_step(const at::Tensor& probabilities_KGT, const at::Tensor& v_KTD) {
  const at::Tensor out_KGD = at::bmm(probabilities_KGT, v_KTD.to(probabilities_KGT.scalar_type()));
  return out_KGD.reshape({1, -1}).to(v_KTD.scalar_type());
}

}  // namespace

Decoder::Decoder(const Llama& model, int64_t capacity, int64_t sequences)
    : model_(model), capacity_(capacity), lengths_(static_cast<size_t>(sequences), 0) {
  const ModelConfig& config = model.config();
  const Weights& weights = model.weights();
  rope_ = make_rope_table(config, capacity, weights.type(), weights.device());
  cache_ = KvCache(config, sequences, capacity, weights.type(), weights.device());
  for (int l = 0; l < config.num_hidden_layers; ++l)
    layers_.push_back(bind_layer(weights, l, config.sharing));
  if (CpuStep::supports(model))
    cpu_step_ = CpuStep::make(model, layers_, rope_, cache_, std::max(sequences, kRowsTogether));
}

void Decoder::truncate(int64_t length, int64_t sequence) {
  check_sequence(sequence);
  TORCH_CHECK(length >= 0, "decoding: a text of ", length, " tokens");
  lengths_[sequence] = std::min(lengths_[sequence], length);
}

void Decoder::check_sequence(int64_t sequence) const {
  TORCH_CHECK(sequence >= 0 && sequence < sequences(), "decoding: sequence ", sequence, " of ", sequences());
}

void Decoder::check(std::span<const int32_t> tokens, int64_t length) const {
  if (tokens.empty()) throw BadInput("decoding: found no tokens to append, expected at least one");
  if (length > capacity_)
    throw bad_input("decoding", fmt::format("{} tokens", length),
                    fmt::format("at most {}, the capacity of the KV cache", capacity_));
  for (const int32_t token : tokens)
    if (token < 0 || token >= model_.config().vocab_size)
      throw bad_input("decoding", fmt::format("token id {}", token),
                      fmt::format("an id below the model's vocab_size {}", model_.config().vocab_size));
}

at::Tensor Decoder::append(std::span<const int32_t> tokens, int64_t sequence) {
  check_sequence(sequence);
  check(tokens, lengths_[sequence] + static_cast<int64_t>(tokens.size()));
  if (lengths_[sequence] == 0 && tokens.size() > 1) return forward(tokens, {&sequence, 1}, false).squeeze(0);
  if (cpu_step_) return append_rows(tokens, sequence);
  at::Tensor logits_1V;
  for (size_t i = 0; i < tokens.size(); ++i) logits_1V = forward(tokens.subspan(i, 1), {&sequence, 1}, true);
  return logits_1V.squeeze(0);
}

at::Tensor Decoder::append_rows(std::span<const int32_t> tokens, int64_t sequence) {
  const at::Tensor logits_V = at::empty({model_.config().vocab_size}, at::kFloat);
  const std::vector<int64_t> sequences(kRowsTogether, sequence);
  while (!tokens.empty()) {
    const size_t count = std::min(tokens.size(), sequences.size());
    std::vector<int64_t> positions(count);
    std::iota(positions.begin(), positions.end(), lengths_[sequence]);
    cpu_step_->run({tokens.first(count), std::span(sequences).first(count), positions},
                   static_cast<int64_t>(count) - 1, logits_V.mutable_data_ptr<float>(), counts_);
    lengths_[sequence] += static_cast<int64_t>(count);
    tokens = tokens.subspan(count);
  }
  return logits_V;
}

at::Tensor Decoder::step(std::span<const int32_t> tokens, std::span<const int64_t> sequences) {
  TORCH_CHECK(tokens.size() == sequences.size(), "decoding: ", tokens.size(), " tokens for ",
              sequences.size(), " sequences");
  std::vector<int64_t> positions;
  std::vector<bool> steps(lengths_.size());
  for (const int64_t sequence : sequences) {
    check_sequence(sequence);
    TORCH_CHECK(!steps[sequence], "decoding: sequence ", sequence, " twice in a step");
    steps[sequence] = true;
    positions.push_back(lengths_[sequence]);
  }
  check(tokens, positions.empty() ? 0 : 1 + *std::max_element(positions.begin(), positions.end()));
  if (!cpu_step_) return forward(tokens, sequences, true);
  const at::Tensor logits_MV =
      at::empty({static_cast<int64_t>(tokens.size()), model_.config().vocab_size}, at::kFloat);
  cpu_step_->run({tokens, sequences, positions}, 0, logits_MV.mutable_data_ptr<float>(), counts_);
  for (const int64_t sequence : sequences) ++lengths_[sequence];
  return logits_MV;
}

at::Tensor Decoder::forward(std::span<const int32_t> tokens, std::span<const int64_t> sequences, bool step) {
  const ModelConfig& config = model_.config();
  const at::Device device = model_.weights().device();
  const auto on_device = [&](const std::vector<int64_t>& values) {
    return at::tensor(at::IntArrayRef(values), at::kLong).to(device);
  };
  std::vector<int64_t> positions;
  for (size_t i = 0; i < tokens.size(); ++i)
    positions.push_back(step ? lengths_[sequences[i]] : static_cast<int64_t>(i));
  const Rows rows{tokens, sequences, step, on_device(positions)};

  const Weights& weights = model_.weights();
  const at::Tensor& embedding_VC = weights.tensor("model.embed_tokens.weight");
  at::Tensor x_NC = embedding_forward(embedding_VC, on_device({tokens.begin(), tokens.end()}));
  std::vector<SpanInput> span_inputs(layers_.size());
  const auto norm = [&](const at::Tensor& x, const at::Tensor& weight) {
    return rms_norm_forward(x, weight, config.rms_norm_eps).y_NC;
  };
  for (size_t l = 0; l < layers_.size(); ++l) {
    const LayerWeights& layer = layers_[l];
    const at::Tensor attended =
        attention(static_cast<int>(l), norm(x_NC, weights.tensor(layer.input_norm)), rows, span_inputs);
    x_NC = layer.output.forward(attended, x_NC);
    const at::Tensor gate_up = layer.gate_up.forward(norm(x_NC, weights.tensor(layer.post_attention_norm)));
    x_NC = layer.down.forward(swiglu_forward(gate_up), x_NC);
  }
  for (const int64_t sequence : sequences) lengths_[sequence] += step ? 1 : rows.count();
  if (!step) x_NC = x_NC.narrow(0, rows.count() - 1, 1);
  const at::Tensor last_MC = norm(x_NC, weights.tensor("model.norm.weight"));
  const at::Tensor& head_VC = config.tie_word_embeddings ? embedding_VC : weights.tensor("lm_head.weight");
  return linear_forward(last_MC, head_VC).to(at::kCPU, at::kFloat);
}

void Decoder::remember(const at::Tensor& cache, const at::Tensor& new_NKD, const Rows& rows) const {
  if (!rows.step) {
    cache[rows.sequences.front()].narrow(1, 0, rows.count()).copy_(new_NKD.transpose(0, 1));
    return;
  }
  for (int64_t i = 0; i < rows.count(); ++i)
    cache[rows.sequences[i]].select(1, lengths_[rows.sequences[i]]).copy_(new_NKD[i]);
}

at::Tensor Decoder::attention(int layer, const at::Tensor& normed_NC, const Rows& rows,
                              std::vector<SpanInput>& span_inputs) {
  const ModelConfig& config = model_.config();
  const int64_t N = rows.count(), D = config.head_dim;
  const int source = config.sharing.source(layer);
  const at::Tensor qkv = layers_[layer].qkv.forward(normed_NC);
  const int64_t v_begin = qkv.size(1) - config.key_value_size();
  const at::Tensor v_NKD =
      qkv.narrow(1, v_begin, config.key_value_size()).view({N, config.num_key_value_heads, D});
  // Of a step, row i's sequence with its new token.
  const auto cached = [&](const at::Tensor& cache, int64_t i) {
    return cache[rows.sequences[i]].narrow(1, 0, lengths_[rows.sequences[i]] + 1);
  };
  remember(cache_.values[layer], v_NKD, rows);
  if (rows.step) (source == layer ? counts_.computed : counts_.reused) += N;
  if (source == layer) {
    SpanInput& own = span_inputs[layer];
    own.q_NHD = qkv.narrow(1, 0, config.query_size()).view({N, config.num_attention_heads, D});
    own.k_NKD =
        qkv.narrow(1, config.query_size(), config.key_value_size()).view({N, config.num_key_value_heads, D});
    rope_apply(own.q_NHD, rows.positions_N, rope_, false);
    rope_apply(own.k_NKD, rows.positions_N, rope_, false);
    remember(cache_.keys[layer], own.k_NKD, rows);
    // One row of queries a sequence: its probabilities are small enough to keep.
    for (int64_t i = 0; rows.step && i < N; ++i)
      own.probabilities_KGT.push_back(
          step_probabilities(own.q_NHD.narrow(0, i, 1), cached(cache_.keys[layer], i)));
  }
  const SpanInput& used = span_inputs[source];
  if (!rows.step)
    return attention_forward(used.q_NHD, used.k_NKD, v_NKD, {0, N}).out_NHD.reshape({N, config.query_size()});
  std::vector<at::Tensor> attended;
  for (int64_t i = 0; i < N; ++i)
    attended.push_back(apply_step(used.probabilities_KGT[i], cached(cache_.values[layer], i)));
  return N == 1 ? attended.front() : at::cat(attended);
}

int64_t Decoder::dense_cache_bytes() const {
  const int64_t per_token = 2 * model_.config().num_hidden_layers * model_.config().key_value_size();
  return per_token * cache_.values.front().element_size() * capacity_ * sequences();
}

int64_t Decoder::bytes_per_token() const {
  return kv_cache_bytes_per_token(model_.config(), cache_.values.front().element_size());
}

}  // namespace satune
