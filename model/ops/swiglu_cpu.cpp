#include "model/ops/fast_exp.h"
#include "model/ops/swiglu_kernels.h"

namespace satune::kernels {

template <typename T>
void swiglu_forward(const T* gate_up, T* act, int64_t begin, int64_t end, int64_t ffn) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * ffn;
    const T* up = gate + ffn;
    T* out = act + row * ffn;
    SATUNE_INDEPENDENT
    for (int64_t i = 0; i < ffn; ++i) {
      const A g = load(gate[i]);
      out[i] = store<T>(g / (A(1) + fast_exp(-g)) * load(up[i]));
    }
  }
}

template <typename T>
void swiglu_backward(const T* d_act, const T* gate_up, T* d_gate_up, int64_t begin, int64_t end,
                     int64_t ffn) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * ffn;
    const T* up = gate + ffn;
    const T* upstream = d_act + row * ffn;
    T* d_gate = d_gate_up + row * 2 * ffn;
    T* d_up = d_gate + ffn;
    SATUNE_INDEPENDENT
    for (int64_t i = 0; i < ffn; ++i) {
      const A g = load(gate[i]);
      const A u = load(up[i]);
      const A d = load(upstream[i]);
      const A sigmoid = A(1) / (A(1) + fast_exp(-g));
      d_gate[i] = store<T>(d * u * sigmoid * (A(1) + g * (A(1) - sigmoid)));
      d_up[i] = store<T>(d * g * sigmoid);
    }
  }
}

#define SATUNE_INSTANTIATE(T)                                               \
  template void swiglu_forward<T>(const T*, T*, int64_t, int64_t, int64_t); \
  template void swiglu_backward<T>(const T*, const T*, T*, int64_t, int64_t, int64_t);
SATUNE_FOR_EACH_TYPE(SATUNE_INSTANTIATE)
#undef SATUNE_INSTANTIATE

}  // namespace satune::kernels
