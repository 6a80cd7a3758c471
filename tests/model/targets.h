#pragma once

#include <ATen/ATen.h>

#include "model/ops/linear_cross_entropy.h"

namespace satune::testing {

/// From an id for each row, negative where it has no target.
inline Targets targets_of(const at::Tensor& targets_N) {
  const at::Tensor rows_M = targets_N.ge(0).nonzero().squeeze(1);
  return {rows_M, targets_N.index_select(0, rows_M)};
}

}  // namespace satune::testing
