// Work of a training step in floating-point operations, for model FLOPs utilisation.
//
// A product of [M, K] by [K, N] counts 2MKN. Counted is what the mathematics of the model asks for, as PaLM
// (arXiv 2204.02311, appendix B) defines MFU: nothing for what an activation policy or a kernel computes
// again, nothing for element-wise work. Per token:
//   projections and head  2 per weight forward, 2 for the input's gradient, 2 for the weight's gradient;
//                         the embedding's lookup is none
//   attention             six products over the document's T tokens (scores, their two gradients; weighted
//                         values, their two gradients), each 2 T H D, halved by causality: 6 T H D a layer.
//                         A layer of Shared Attention has no q_proj and k_proj, and the three products of the
//                         scores are its anchor's: 3 T H D.
#pragma once

#include <vector>

#include "model/files/model_config.h"
#include "model/files/tensor_table.h"

namespace satune {

/// Operations per token of forward and backward over documents of `document_length` tokens. `trained` as in
/// Llama's constructor: a frozen tensor has no weight gradient, and nothing below the lowest trained segment
/// has a backward. Each tensor's cost follows from its shape in `table`, which must be the config's.
double training_flops_per_token(const ModelConfig& config, const TensorTable& table,
                                const std::vector<bool>& trained, double document_length);

}  // namespace satune
