#include "trainer/bench_work.h"

#include <algorithm>

#include "model/ops/fp8.h"
#include "model/step_trace.h"

namespace satune {
namespace {

/// One layer and one micro-batch.
class LayerWork {
 public:
  LayerWork(const WorkShape& shape, int layer, bool accumulate)
      : shape_(shape),
        config_(shape.config),
        shared_(config_.sharing.is_shared(layer)),
        spanned_(config_.sharing.is_anchor(layer)),
        // Of a span, the layer whose backward comes first leaves its part as it is.
        first_of_span_(shared_ && config_.sharing.users(config_.sharing.source(layer)).back() == layer),
        accumulate_(accumulate),
        recording_(shape.recording[static_cast<size_t>(layer)]),
        N(static_cast<double>(shape.tokens)),
        C(static_cast<double>(config_.hidden_size)),
        F(static_cast<double>(config_.intermediate_size)),
        Q(static_cast<double>(config_.query_size())),
        KV(static_cast<double>(config_.key_value_size())),
        H(static_cast<double>(config_.num_attention_heads)),
        E(static_cast<double>(shape.element)) {}

  PartWork forward(std::string_view part) const { return forward(part, recording_ == Recording::kKeep); }

  PartWork backward(std::string_view part) const {
    // The input in 8 bits by columns: by the forward that kept it, or that came again.
    const bool made_before = recording_ != Recording::kSelective;
    // Reads the gradient, the input and that of the residual; writes the input's gradient, and the weight's.
    if (part == part::kNorm) return {0, 2 * (4 * N * C * E + C * E + N * 4 + weight_gradient(C))};
    if (part == part::kQkv) return product_backward(C, qkv(), made_before);
    if (part == part::kRope) return forward(part);
    if (part == part::kAttention)
      return {5 * attention_product(), N * (2 * Q + 2 * KV) * E + N * H * 4 + N * (2 * Q + 2 * KV) * E};
    if (part == part::kOutput) return product_backward(Q, C, made_before);
    if (part == part::kGateUp) return product_backward(C, 2 * F, made_before);
    if (part == part::kSwiglu) return {0, 5 * N * F * E};
    if (part == part::kDown) return product_backward(F, C, recording_ == Recording::kKeep);
    if (part == part::kSpan) return span();
    return {};
  }

  /// What the policy computes a second time, inside the backward.
  PartWork again(std::string_view part) const {
    return part == part::kDown ? PartWork{} : forward(part, /*keeps=*/true);
  }

 private:
  /// `keeps`: as product()'s.
  PartWork forward(std::string_view part, bool keeps) const {
    if (part == part::kNorm) return {0, 2 * (2 * N * C * E + C * E + N * 4)};
    if (part == part::kQkv) return product(C, qkv(), keeps);
    if (part == part::kRope) return {0, shared_ ? 0 : 2 * N * (Q + KV) * E};
    if (part == part::kAttention) return {2 * attention_product(), N * (2 * Q + 2 * KV) * E + N * H * 4};
    if (part == part::kOutput) return with_residual(product(Q, C, keeps));
    if (part == part::kGateUp) return product(C, 2 * F, keeps);
    if (part == part::kSwiglu) return {0, 3 * N * F * E};
    if (part == part::kDown) return with_residual(product(F, C, keeps));
    return {};
  }

  double qkv() const { return shared_ ? KV : Q + 2 * KV; }
  bool in_8_bits(double inputs, double outputs) const {
    return shape_.fp8 && takes_fp8(static_cast<int64_t>(outputs), static_cast<int64_t>(inputs));
  }
  /// Read in E bytes, written in one: by rows, by columns, or both.
  double made_in_8_bits(double elements, int copies) const { return elements * (E + copies); }
  /// Tokens times a matrix [outputs, inputs]. `keeps`: a backward reads what this leaves.
  PartWork product(double inputs, double outputs, bool keeps) const {
    const double flops = 2 * N * inputs * outputs;
    if (in_8_bits(inputs, outputs)) {
      const double made = made_in_8_bits(N * inputs, keeps ? 2 : 1);
      return {flops, made + N * inputs + inputs * outputs + N * outputs * E, flops};
    }
    return {flops, (N * inputs + inputs * outputs + N * outputs) * E};
  }
  PartWork with_residual(PartWork work) const {
    work.bytes += N * C * E;
    return work;
  }
  double weight_gradient(double elements) const {
    return elements * static_cast<double>(shape_.gradient_element) * (accumulate_ ? 2 : 1);
  }
  /// Two products: the input's gradient, and the weight's.
  PartWork product_backward(double inputs, double outputs, bool made_before) const {
    const double flops = 4 * N * inputs * outputs;
    if (in_8_bits(inputs, outputs)) {
      const double made = made_in_8_bits(N * outputs, 2) + (made_before ? 0 : made_in_8_bits(N * inputs, 1));
      // A gradient that is added is written beside it first.
      const double added =
          accumulate_ ? 2 * weight_gradient(inputs * outputs) : weight_gradient(inputs * outputs);
      return {flops, made + 2 * N * outputs + N * inputs + inputs * outputs + N * inputs * E + added, flops};
    }
    return {flops,
            (2 * N * outputs + 2 * N * inputs + inputs * outputs) * E + weight_gradient(inputs * outputs)};
  }
  /// Two operations, halved by causality, for every pair of a document's tokens.
  double attention_product() const { return N * static_cast<double>(shape_.document_length) * Q; }
  /// Sums of fp32.
  PartWork span() const {
    const double elements = N * (Q + KV);
    if (shared_) return {0, elements * (E + (first_of_span_ ? 4 : 8))};
    return {0, spanned_ ? elements * (E + 8 + 4 + E) : 0};
  }

  const WorkShape& shape_;
  const ModelConfig& config_;
  const bool shared_, spanned_, first_of_span_, accumulate_;
  const Recording recording_;
  const double N, C, F, Q, KV, H, E;
};

/// Both norms of every layer, or those that a policy computes again; and so on.
PartWork layers_work(const WorkShape& shape, bool accumulate, std::string_view pass, bool again,
                     std::string_view part) {
  PartWork sum;
  for (int layer = 0; layer < shape.config.num_hidden_layers; ++layer) {
    const LayerWork work(shape, layer, accumulate);
    if (!again) {
      sum += pass == "layer forward" ? work.forward(part) : work.backward(part);
      continue;
    }
    const Recording recording = shape.recording[static_cast<size_t>(layer)];
    const bool element_wise = part == part::kNorm || part == part::kSwiglu;
    if (recording == Recording::kRecompute || (recording == Recording::kSelective && element_wise))
      sum += work.again(part);
  }
  return sum;
}

PartWork embedding_work(const WorkShape& shape, bool backward, bool accumulate) {
  const auto N = static_cast<double>(shape.tokens), C = static_cast<double>(shape.config.hidden_size),
             V = static_cast<double>(shape.config.vocab_size);
  const auto E = static_cast<double>(shape.element), G = static_cast<double>(shape.gradient_element);
  if (!backward) return {0, 2 * N * C * E};
  // Rows that occur are read and written; others are zeroed where nothing is added to.
  const bool added = accumulate || shape.config.tie_word_embeddings;
  return {0, N * C * E + 2 * N * C * G + (added ? 0 : V * C * G)};
}

PartWork head_work(const WorkShape& shape, std::string_view pass, std::string_view part, bool accumulate) {
  const auto N = static_cast<double>(shape.tokens), C = static_cast<double>(shape.config.hidden_size),
             V = static_cast<double>(shape.config.vocab_size);
  const auto E = static_cast<double>(shape.element), G = static_cast<double>(shape.gradient_element);
  const double added = accumulate ? 2 : 1;
  if (part == part::kNorm && pass == "head forward") return {0, 2 * N * C * E + C * E + N * 4};
  if (part == part::kNorm) return {0, 3 * N * C * E + C * E + N * 4 + C * G * added};
  if (part == part::kLoss) return {6 * N * C * V, (2 * N * C + V * C) * E + V * C * G * added};
  return {};
}

PartWork micro_step_work(const WorkShape& shape, const std::vector<std::string>& path, bool accumulate) {
  const std::string& pass = path[1];
  if (pass == "embedding forward" || pass == "embedding backward")
    return embedding_work(shape, pass == "embedding backward", accumulate);
  if (path.size() < 3) return {};
  if (pass == "layer forward" || pass == "layer backward") {
    const bool again = path[2] == part::kAgain;
    if (again && path.size() < 4) return {};
    return layers_work(shape, accumulate, pass, again, again ? path[3] : path[2]);
  }
  if (pass == "head forward" || pass == "head backward") return head_work(shape, pass, path[2], accumulate);
  return {};
}

}  // namespace

PartWork work_of(const WorkShape& shape, const std::vector<std::string>& path) {
  if (path.size() < 2) return {};
  if (path[1] == "optimizer") return {0, static_cast<double>(shape.update_bytes)};
  if (path[1] == "norm of the gradients") return {0, static_cast<double>(shape.norm_bytes)};
  PartWork sum;
  for (int64_t i = 0; i < shape.micro_steps; ++i)
    sum += micro_step_work(shape, path, i > 0 && shape.accumulates);
  return sum;
}

}  // namespace satune
