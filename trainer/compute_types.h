// Element types of a run.
#pragma once

#include <c10/core/ScalarType.h>

#include "trainer/memory_plan.h"
#include "trainer/settings.h"
#include "trainer/shard.h"

namespace satune {

/// Of weights and activations.
inline at::ScalarType weight_type(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return at::kFloat;
    case Precision::kFp16:
      return at::kHalf;
    case Precision::kBf16:
      break;
  }
  return at::kBFloat16;
}

/// Of gradients as the backward writes them.
inline at::ScalarType gradient_type(const Settings& settings, const World& world) {
  return gradient_element_bytes(settings, world) == 4 ? at::kFloat : weight_type(settings.precision);
}

}  // namespace satune
