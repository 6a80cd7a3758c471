// The formats of trainer/state_kernels.h and the noise of trainer/rounding_noise.h as tensor operations, for
// state that lives on a card: the same bits, in more passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trainer/rounding_noise.h"

namespace satune {

enum class StateForm;

/// The elements of a StateArray that are worked on, which begin on a border of kStateBlock.
struct StateSlices {
  at::Tensor numbers;  ///< bits of 16 (int16) | bf16 | codes
  at::Tensor extra;    ///< ties, eight a byte | scales
  at::Tensor weights;  ///< bf16, of StateForm::kSplit
};

/// fp32, of every form but kFp32.
at::Tensor decode_tensor(StateForm form, const StateSlices& slices);
/// `noise`: int64 words; undefined rounds to nearest.
void encode_tensor(StateForm form, const StateSlices& slices, const at::Tensor& values,
                   const at::Tensor& noise);

/// n words, as int64.
at::Tensor rounding_noise_tensor(const NoiseKey& key, int64_t first, int64_t n, at::Device device);

}  // namespace satune
