#include "model/flops.h"

#include <stdexcept>

namespace satune {
namespace {

/// Whether the tensor is a matrix of a product; a tied embedding is the head's.
bool is_multiplied(const ModelConfig& config, const TensorInfo& tensor) {
  if (tensor.role == TensorRole::kEmbedding) return config.tie_word_embeddings;
  return tensor.shape.size() == 2;
}

int lowest_trained_segment(const TensorTable& table, const std::vector<bool>& trained) {
  if (trained.empty()) return 0;
  for (size_t i = 0; i < trained.size(); ++i) {
    if (trained[i]) return table.tensors()[i].segment;
  }
  return table.num_segments();
}

double projection_flops(const ModelConfig& config, const TensorTable& table, const std::vector<bool>& trained,
                        int lowest) {
  double flops = 0;
  for (size_t i = 0; i < table.tensors().size(); ++i) {
    const TensorInfo& tensor = table.tensors()[i];
    if (!is_multiplied(config, tensor)) continue;
    // The tied matrix sits in segment 0 and is multiplied in the last one.
    const int segment = tensor.role == TensorRole::kEmbedding ? table.num_segments() - 1 : tensor.segment;
    const bool input_gradient = segment >= lowest, weight_gradient = trained.empty() || trained[i];
    flops += 2.0 * static_cast<double>(tensor.numel()) * (1 + input_gradient + weight_gradient);
  }
  return flops;
}

double attention_flops(const ModelConfig& config, int lowest, double document_length) {
  // Two operations, halved by causality.
  const double product = document_length * static_cast<double>(config.query_size());
  double flops = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const int products_forward = config.sharing.is_shared(layer) ? 1 : 2;
    flops += product * products_forward * (layer + 1 >= lowest ? 3 : 1);
  }
  return flops;
}

}  // namespace

double training_flops_per_token(const ModelConfig& config, const TensorTable& table,
                                const std::vector<bool>& trained, double document_length) {
  if (!trained.empty() && trained.size() != table.tensors().size()) {
    throw std::logic_error("training_flops_per_token: one flag per tensor");
  }
  const int lowest = lowest_trained_segment(table, trained);
  return projection_flops(config, table, trained, lowest) + attention_flops(config, lowest, document_length);
}

}  // namespace satune
