// Rotary position embedding in the Hugging Face half-split layout: element i is paired with i + D/2.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/files/model_config.h"

namespace satune {

/// cos and sin of fp32 position x fp32 inv_freq, for positions [0, length); fp32 (fp64 for fp64 models).
struct RopeTable {
  at::Tensor cos_PD2, sin_PD2;  ///< [P, D / 2]
};

/// inv_freq [D / 2] fp32: theta^(-2i/D), rescaled for rope_type "llama3" as transformers does (long wave
/// lengths divided by `factor`, a linear blend between the low and high frequency borders).
at::Tensor rope_inverse_frequencies(const ModelConfig& config);

RopeTable make_rope_table(const ModelConfig& config, int64_t length, at::ScalarType type, at::Device device);

/// Rotates in place: x [N, heads, D] with contiguous heads and any row stride. `inverse` rotates back, which
/// is the backward pass (the rotation is orthogonal).
void rope_apply(const at::Tensor& x_NHD, const at::Tensor& positions_N, const RopeTable& table, bool inverse);

}  // namespace satune
