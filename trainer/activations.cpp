#include "trainer/activations.h"

#include <algorithm>

namespace satune {
namespace {

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kTileTokens = 1024, kTileElements = int64_t{1} << 21;  // of linear_fp32.cpp
constexpr int64_t kLogitsElements = int64_t{1} << 26;  // of a chunk of the loss (linear_cross_entropy.cpp)

/// Elements per token that a policy keeps, beside the fp32 scalars.
int64_t kept_elements(const ModelConfig& config, int layer, Recording recording) {
  const int64_t hidden = config.hidden_size, ffn = config.intermediate_size;
  const bool shared = config.sharing.is_shared(layer), anchor = config.sharing.is_anchor(layer);
  const int64_t query_key = shared ? 0 : config.query_size() + config.key_value_size();
  if (recording == Recording::kRecompute) return hidden + (anchor ? query_key : 0);
  // Input, q and k, v, attention's output, the stream between attention and MLP, gate and up.
  int64_t elements = hidden + query_key + config.key_value_size() + config.query_size() + hidden + 2 * ffn;
  if (recording == Recording::kKeep) elements += 2 * hidden + ffn;  // both norms, SwiGLU
  return elements;
}

int64_t kept_of_layer(const PassShape& shape, int layer, Recording recording) {
  const ModelConfig& config = shape.config;
  if (layer + 1 < shape.lowest_trained) {
    const int64_t query_key = config.query_size() + config.key_value_size();
    return config.sharing.is_anchor(layer) ? shape.tokens * query_key * shape.element : 0;
  }
  return layer_activation_bytes(config, layer, recording, shape.tokens, shape.element);
}

/// A weight gradient of `numel` elements while its product is made, where the gradient is wider than the
/// operands: rounded to their type, then added. A product through fp32 needs its tiles of both operands and
/// of the sum.
int64_t weight_gradient_bytes(const PassShape& shape, int64_t numel, int64_t gradient_element) {
  if (!shape.widened) return gradient_element == shape.element ? 0 : numel * shape.element;
  const int64_t hidden = shape.config.hidden_size, outputs = kTileElements / std::min(hidden, kTileElements);
  const int64_t tokens = std::min(shape.tokens, kTileTokens);
  return (std::min(numel, 2 * kTileElements) + tokens * (hidden + outputs)) * kFloatBytes;
}

/// Of a layer's backward, beside what its forward recorded: the gradients of its output and, by turns, of
/// SwiGLU's two sides, of the largest fused weight, of the norm (in fp32 steps on a card).
int64_t layer_backward_bytes(const PassShape& shape, int layer) {
  const ModelConfig& config = shape.config;
  const int64_t stream = shape.tokens * config.hidden_size;
  const int64_t swiglu = 2 * shape.tokens * config.intermediate_size * shape.element;
  const int64_t weight =
      weight_gradient_bytes(shape, 2 * config.intermediate_size * config.hidden_size, shape.gradient_element);
  const int64_t norm = shape.on_card ? 6 * stream * kFloatBytes : 0;
  int64_t bytes = stream * shape.element + std::max(swiglu, stream * shape.element + std::max(weight, norm));
  if (config.sharing.is_shared(layer) || config.sharing.is_anchor(layer)) {
    bytes += shape.tokens * (config.query_size() + config.key_value_size()) * kFloatBytes;  // SpanGradient
  }
  return bytes;
}

/// The head: input, norm and gradient of the stream, one chunk of logits, the gradient of the matrix.
int64_t head_bytes(const PassShape& shape) {
  const int64_t vocabulary = shape.config.vocab_size, hidden = shape.config.hidden_size;
  const int64_t rows = std::min(shape.tokens, std::max<int64_t>(1, kLogitsElements / vocabulary));
  int64_t logits = shape.element;
  // On a card: the logits in fp32, their log-softmax, its exponential.
  if (shape.on_card) logits = 3 * kFloatBytes + (shape.element < kFloatBytes ? shape.element : 0);
  int64_t bytes = 3 * shape.tokens * hidden * shape.element + rows * vocabulary * logits;
  bytes += 2 * rows * hidden * shape.element;  // the chunk's rows and their gradient
  const bool several_chunks = rows < shape.tokens;
  const bool summed_wide = several_chunks && shape.gradient_element < kFloatBytes;
  if (summed_wide) bytes += vocabulary * hidden * kFloatBytes;
  return bytes + weight_gradient_bytes(shape, vocabulary * hidden,
                                       summed_wide ? kFloatBytes : shape.gradient_element);
}

/// The embedding's gradient is summed dense in fp32 on a card, in place on the CPU.
int64_t embedding_bytes(const PassShape& shape) {
  if (!shape.on_card || shape.lowest_trained > 0) return 0;
  return (shape.tokens + shape.config.vocab_size) * shape.config.hidden_size * kFloatBytes;
}

}  // namespace

int64_t layer_activation_bytes(const ModelConfig& config, int layer, Recording recording, int64_t tokens,
                               int64_t element) {
  // Per token in fp32: 1 / rms of both norms and the attention's log-sum-exp per head.
  const int64_t scalars = recording == Recording::kRecompute ? 0 : 2 + config.num_attention_heads;
  return tokens * (kept_elements(config, layer, recording) * element + scalars * kFloatBytes);
}

int64_t kept_bytes(const PassShape& shape, const std::vector<Recording>& recording) {
  int64_t total = 0;
  for (size_t i = 0; i < recording.size(); ++i)
    total += kept_of_layer(shape, static_cast<int>(i), recording[i]);
  return total;
}

int64_t peak_bytes(const PassShape& shape, const std::vector<Recording>& recording) {
  int64_t peak = embedding_bytes(shape), kept = 0;
  for (size_t i = 0; i < recording.size(); ++i) {
    const auto layer = static_cast<int>(i);
    // Under every policy the layer in progress has its whole record, in the forward and again in the
    // backward.
    const int64_t whole =
        layer_activation_bytes(shape.config, layer, Recording::kKeep, shape.tokens, shape.element);
    const bool has_backward = layer + 1 >= shape.lowest_trained;
    peak = std::max(peak, kept + whole + (has_backward ? layer_backward_bytes(shape, layer) : 0));
    kept += kept_of_layer(shape, layer, recording[i]);
  }
  return std::max(peak, kept + head_bytes(shape));
}

std::vector<Recording> choose_recording(Checkpointing choice, const PassShape& shape, int64_t available) {
  const auto layers = static_cast<size_t>(shape.config.num_hidden_layers);
  switch (choice) {
    case Checkpointing::kOff:
      return std::vector<Recording>(layers, Recording::kKeep);
    case Checkpointing::kSelective:
      return std::vector<Recording>(layers, Recording::kSelective);
    case Checkpointing::kOn:
      return std::vector<Recording>(layers, Recording::kRecompute);
    case Checkpointing::kAuto:
      break;
  }
  std::vector<Recording> recording(layers, Recording::kKeep);
  for (const Recording thinner : {Recording::kSelective, Recording::kRecompute}) {
    for (size_t i = 0; i < layers; ++i) {
      if (peak_bytes(shape, recording) <= available) return recording;
      recording[i] = thinner;
    }
  }
  return recording;
}

}  // namespace satune
