// Row kernel of RoPE, without LibTorch.
#pragma once

#include <cstdint>

#include "model/ops/kernel_types.h"

namespace satune::kernels {

/// x: rows of `heads` x `head_dim`, `row_stride` elements apart. sign: +1 forward, -1 inverse.
template <typename T>
void rope_apply(T* x, int64_t row_stride, const int64_t* positions, const accumulate_t<T>* cos_table,
                const accumulate_t<T>* sin_table, int64_t begin, int64_t end, int64_t heads, int64_t head_dim,
                int sign);

}  // namespace satune::kernels
