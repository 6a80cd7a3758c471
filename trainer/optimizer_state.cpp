#include "trainer/optimizer_state.h"

#include <ATen/ATen.h>

#include "trainer/state_kernels.h"

namespace satune {
namespace {

at::ScalarType stored_type(StateForm form) {
  if (form == StateForm::kFirst8Bit || form == StateForm::kSecond8Bit) return at::kByte;
  return form == StateForm::kBf16 ? at::kBFloat16 : at::kFloat;
}

}  // namespace

StateForm moment_form(OptimizerMoments moments, bool second) {
  if (moments == OptimizerMoments::kFp32) return StateForm::kFp32;
  if (moments == OptimizerMoments::kBf16) return StateForm::kBf16;
  return second ? StateForm::kSecond8Bit : StateForm::kFirst8Bit;
}

OptimizerBytes optimizer_bytes(const StateFormat& format, Precision precision, int64_t elements) {
  OptimizerBytes bytes;
  const bool kept = precision != Precision::kFp32 && format.master_weights != MasterWeights::kNone;
  const bool split = format.master_weights == MasterWeights::kSplit;
  if (kept) bytes.master = state_bytes(split ? StateForm::kSplit : StateForm::kFp32, elements);
  for (const bool second : {false, true}) {
    bytes.moments += state_bytes(moment_form(format.moments, second), elements);
  }
  return bytes;
}

int64_t StoredPart::numbers(int64_t begin, int64_t count) const {
  if (!scales || count == 0) return count;
  return (begin + count + kStateBlock - 1) / kStateBlock - begin / kStateBlock;
}

std::vector<StoredPart> stored_parts(const StateFormat& format, bool only_master) {
  const bool bf16 = format.master_weights == MasterWeights::kNone;
  std::vector<StoredPart> parts = {{kOptimizerParts[0], false, bf16 ? at::kBFloat16 : at::kFloat}};
  if (only_master) return parts;
  for (const bool second : {false, true}) {
    const std::string_view part = kOptimizerParts[second ? 2 : 1];
    parts.push_back({part, false, stored_type(moment_form(format.moments, second))});
    if (format.moments == OptimizerMoments::k8Bit) parts.push_back({part, true, at::kFloat});
  }
  return parts;
}

int64_t stored_bytes(const std::vector<StoredPart>& parts, int64_t elements) {
  int64_t bytes = 0;
  for (const StoredPart& part : parts) {
    bytes += part.numbers(0, elements) * static_cast<int64_t>(at::elementSize(part.type));
  }
  return bytes;
}

}  // namespace satune
