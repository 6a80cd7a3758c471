// The formats of trainer/state_kernels.h as tensor operations, for state that lives on a card while it is
// read and set from outside: the same bits. Updates have a kernel of their own.
#pragma once

#include <ATen/core/Tensor.h>

#include "trainer/state_form.h"

namespace satune {

/// The elements of a StateArray that are worked on, which begin on a border of kStateBlock.
struct StateSlices {
  at::Tensor numbers;  ///< bits of 16 (int16) | bf16 | codes
  at::Tensor extra;    ///< ties, eight a byte | scales
  at::Tensor weights;  ///< bf16, of StateForm::kSplit
};

/// fp32, of every form but kFp32.
at::Tensor decode_tensor(StateForm form, const StateSlices& slices);
/// Rounds to nearest.
void encode_tensor(StateForm form, const StateSlices& slices, const at::Tensor& values);

}  // namespace satune
