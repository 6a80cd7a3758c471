#include <cmath>

#include "model/ops/rms_norm_kernels.h"

namespace satune::kernels {
namespace {

/// Sum of f(i) over a row in 16 interleaved partial sums: a fixed order that vectorises.
template <typename A, typename F>
A row_sum(int64_t width, F&& term) {
  constexpr int64_t kLanes = 16;
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  A tail = 0;
  for (; i < width; ++i) tail += term(i);
  for (int64_t step = kLanes / 2; step > 0; step /= 2) {
    for (int64_t lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
  }
  return lanes[0] + tail;
}

}  // namespace

template <typename T>
void rms_norm_forward(const T* x, const T* weight, T* y, accumulate_t<T>* rstd, int64_t begin, int64_t end,
                      int64_t width, double eps) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* xr = x + row * width;
    T* yr = y + row * width;
    const A squares = row_sum<A>(width, [&](int64_t i) { return load(xr[i]) * load(xr[i]); });
    const A scale = A(1) / std::sqrt(squares / static_cast<A>(width) + static_cast<A>(eps));
    rstd[row] = scale;
    for (int64_t i = 0; i < width; ++i) {
      const A normed = load(store<T>(load(xr[i]) * scale));
      yr[i] = store<T>(normed * load(weight[i]));
    }
  }
}

template <typename T>
void rms_norm_backward(const T* d_y, const T* x, const T* weight, const accumulate_t<T>* rstd,
                       const T* residual, T* d_x, accumulate_t<T>* d_weight, int64_t begin, int64_t end,
                       int64_t width) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* dr = d_y + row * width;
    const T* xr = x + row * width;
    T* out = d_x + row * width;
    const A scale = rstd[row];
    const A dot = row_sum<A>(width, [&](int64_t i) { return load(dr[i]) * load(weight[i]) * load(xr[i]); });
    const A correction = dot * scale * scale * scale / static_cast<A>(width);
    if (residual != nullptr) {
      const T* rr = residual + row * width;
      for (int64_t i = 0; i < width; ++i) {
        const A gradient = load(dr[i]) * load(weight[i]) * scale - load(xr[i]) * correction;
        out[i] = store<T>(load(rr[i]) + gradient);
      }
    } else {
      for (int64_t i = 0; i < width; ++i) {
        out[i] = store<T>(load(dr[i]) * load(weight[i]) * scale - load(xr[i]) * correction);
      }
    }
    if (d_weight != nullptr) {
      for (int64_t i = 0; i < width; ++i) {
        d_weight[i] += load(dr[i]) * load(store<T>(load(xr[i]) * scale));
      }
    }
  }
}

#define SATUNE_INSTANTIATE(T)                                                                            \
  template void rms_norm_forward<T>(const T*, const T*, T*, accumulate_t<T>*, int64_t, int64_t, int64_t, \
                                    double);                                                             \
  template void rms_norm_backward<T>(const T*, const T*, const T*, const accumulate_t<T>*, const T*, T*, \
                                     accumulate_t<T>*, int64_t, int64_t, int64_t);
SATUNE_FOR_EACH_TYPE(SATUNE_INSTANTIATE)
#undef SATUNE_INSTANTIATE

}  // namespace satune::kernels
