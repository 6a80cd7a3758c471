// One number of AdamW for each element of a share - master, first or second moment - in the form in which a
// memory mode keeps it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "trainer/settings.h"
#include "trainer/state_form.h"
#include "trainer/state_tensors.h"

namespace satune {

class StateArray {
 public:
  StateArray() = default;
  /// Zeros.
  StateArray(StateForm form, int64_t elements, at::Device device);
  /// The numbers that `numbers` (fp32 or bf16) holds, in place.
  explicit StateArray(at::Tensor numbers);
  /// kSplit over bf16 weights, which it writes: masters equal to them.
  static StateArray split(at::Tensor weights);

  StateForm form() const { return form_; }
  at::Device device() const { return numbers_.device(); }
  int64_t numel() const { return numbers_.numel(); }
  bool rounds_stochastically() const { return form_ != StateForm::kFp32 && form_ != StateForm::kSplit; }

  /// fp32 numbers of elements [begin, end): a view of kFp32, else decoded.
  at::Tensor values(int64_t begin, int64_t end) const;
  /// Elements [begin, begin + values.numel()) from fp32, on borders of kStateBlock (but for the array's end).
  /// Rounded to nearest. What values() gave comes back to the bit.
  void set(int64_t begin, const at::Tensor& values);

  /// The same on the CPU, over plain memory, for one thread; at most kStateTile elements at a time and
  /// `begin` on its borders. kFp32 has no use for it.
  void decode(int64_t begin, int64_t n, float* values) const;
  void encode(int64_t begin, int64_t n, const float* values, const uint32_t* noise);

  /// What a snapshot holds: fp32 of kFp32 and kSplit, else numbers and scales as they are. Scales are those
  /// of the blocks that elements [begin, end) lie in; undefined for forms without.
  at::Tensor stored(int64_t begin, int64_t end) const;
  at::Tensor stored_scales(int64_t begin, int64_t end) const;

  const at::Tensor& numbers() const { return numbers_; }
  /// Where a kernel finds it; for kSplit with the weights.
  StateMemory memory() const;

 private:
  StateSlices slices(int64_t begin, int64_t end) const;

  StateForm form_ = StateForm::kFp32;
  at::Tensor numbers_;  ///< fp32 | bits of 16 | bf16 | codes
  at::Tensor extra_;    ///< ties of kSplit, eight a byte | fp32 scales
  at::Tensor weights_;  ///< of kSplit
};

}  // namespace satune
