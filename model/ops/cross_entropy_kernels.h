// Row kernels of the cross-entropy, without LibTorch.
#pragma once

#include <cstdint>

#include "model/ops/kernel_types.h"

namespace satune::kernels {

/// Rows [begin, end) of logits [n, V]: loss[row], correct[row] (0 or 1); with `scale` != nullptr the logits
/// are replaced by (softmax - onehot(target)) * scale.
template <typename T>
void cross_entropy_rows(T* logits, const int64_t* targets, accumulate_t<T>* loss, int64_t* correct,
                        const accumulate_t<T>* scale, int64_t begin, int64_t end, int64_t vocabulary);

}  // namespace satune::kernels
