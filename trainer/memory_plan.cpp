#include "trainer/memory_plan.h"

#include <algorithm>

namespace satune {
namespace {

constexpr int64_t kFloatBytes = 4;
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

struct ParameterCounts {
  int64_t all = 0, trained = 0;
};

ParameterCounts count_parameters(const TensorTable& table, const std::vector<bool>& trained) {
  ParameterCounts counts;
  const auto tensors = table.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    counts.all += tensors[i].numel();
    if (trained.empty() || trained[i]) counts.trained += tensors[i].numel();
  }
  return counts;
}

int64_t sum_activations(const ModelConfig& config, const std::vector<Recording>& recording, int64_t tokens,
                        int64_t element) {
  int64_t total = 0;
  for (size_t i = 0; i < recording.size(); ++i) {
    total += layer_activation_bytes(config, static_cast<int>(i), recording[i], tokens, element);
  }
  return total;
}

/// The layer in progress (its record and as much again for gradients) or a chunk of logits and its gradient.
int64_t working_bytes(const ModelConfig& config, int64_t tokens, int64_t element) {
  const int64_t layer = 2 * layer_activation_bytes(config, 0, Recording::kKeep, tokens, element);
  const int64_t logits = std::min(tokens * config.vocab_size, kLogitsElements) * (kFloatBytes + element);
  return std::max(layer, logits) + 2 * tokens * config.hidden_size * element;
}

std::vector<Recording> choose_recording(Checkpointing choice, const ModelConfig& config, int64_t tokens,
                                        int64_t element, int64_t available) {
  const auto layers = static_cast<size_t>(config.num_hidden_layers);
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
      if (sum_activations(config, recording, tokens, element) <= available) return recording;
      recording[i] = thinner;
    }
  }
  return recording;
}

}  // namespace

int64_t compute_element_bytes(Precision precision) {
  return precision == Precision::kFp32 ? kFloatBytes : 2;
}

int64_t gradient_element_bytes(const Settings& settings, const World& world) {
  const bool summed_in_place = world.size == 1 && settings.gradient_accumulation_steps > 1;
  return settings.precision == Precision::kBf16 && !summed_in_place ? 2 : kFloatBytes;
}

int64_t layer_activation_bytes(const ModelConfig& config, int layer, Recording recording, int64_t tokens,
                               int64_t element) {
  // Per token in fp32: 1 / rms of both norms and the attention's log-sum-exp per head.
  const int64_t scalars = recording == Recording::kRecompute ? 0 : 2 + config.num_attention_heads;
  return tokens * (kept_elements(config, layer, recording) * element + scalars * kFloatBytes);
}

std::vector<std::pair<std::string, int64_t>> MemoryPlan::items() const {
  return {{"weights", weights}, {"gradients", gradients},     {"master", master},
          {"moments", moments}, {"activations", activations}, {"working", working}};
}

MemoryPlan plan_memory(const Settings& settings, const ModelConfig& config, const TensorTable& table,
                       const std::vector<bool>& trained, int64_t tokens, int64_t available) {
  const int64_t element = compute_element_bytes(settings.precision);
  const ParameterCounts counts = count_parameters(table, trained);
  MemoryPlan plan;
  plan.weights = counts.all * element;
  plan.gradients = counts.trained * gradient_element_bytes(settings);
  plan.master = settings.precision == Precision::kFp32 ? 0 : counts.trained * kFloatBytes;
  plan.moments = counts.trained * 2 * kFloatBytes;
  plan.working = working_bytes(config, tokens, element);
  plan.recording =
      choose_recording(settings.gradient_checkpointing, config, tokens, element, available - plan.total());
  plan.activations = sum_activations(config, plan.recording, tokens, element);
  return plan;
}

}  // namespace satune
