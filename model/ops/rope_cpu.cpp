#include "model/ops/rope_kernels.h"

namespace satune::kernels {

template <typename T>
void rope_apply(T* x, int64_t row_stride, const int64_t* positions, const accumulate_t<T>* cos_table,
                const accumulate_t<T>* sin_table, int64_t begin, int64_t end, int64_t heads, int64_t head_dim,
                int sign) {
  using A = accumulate_t<T>;
  const int64_t half = head_dim / 2;
  const A direction = static_cast<A>(sign);
  for (int64_t row = begin; row < end; ++row) {
    const A* cos_row = cos_table + positions[row] * half;
    const A* sin_row = sin_table + positions[row] * half;
    for (int64_t head = 0; head < heads; ++head) {
      T* low = x + row * row_stride + head * head_dim;
      T* high = low + half;
      SATUNE_INDEPENDENT
      for (int64_t i = 0; i < half; ++i) {
        const A a = load(low[i]);
        const A b = load(high[i]);
        const A s = direction * sin_row[i];
        low[i] = store<T>(a * cos_row[i] - b * s);
        high[i] = store<T>(b * cos_row[i] + a * s);
      }
    }
  }
}

#define SATUNE_INSTANTIATE(T)                                                                              \
  template void rope_apply<T>(T*, int64_t, const int64_t*, const accumulate_t<T>*, const accumulate_t<T>*, \
                              int64_t, int64_t, int64_t, int64_t, int);
SATUNE_FOR_EACH_TYPE(SATUNE_INSTANTIATE)
#undef SATUNE_INSTANTIATE

}  // namespace satune::kernels
