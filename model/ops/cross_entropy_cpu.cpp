#include <cmath>
#include <limits>

#include "model/ops/cross_entropy_kernels.h"
#include "model/ops/fast_exp.h"

namespace satune::kernels {
namespace {

constexpr int64_t kLanes = 16;  // interleaved partial results: a fixed order that vectorises

template <typename T>
accumulate_t<T> row_max(const T* row, int64_t width) {
  using A = accumulate_t<T>;
  A lanes[kLanes];
  for (A& lane : lanes) lane = -std::numeric_limits<A>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const A value = load(row[i + lane]);
      lanes[lane] = value > lanes[lane] ? value : lanes[lane];
    }
  }
  A result = lanes[0];
  for (A lane : lanes) result = lane > result ? lane : result;
  for (; i < width; ++i) result = load(row[i]) > result ? load(row[i]) : result;
  return result;
}

template <typename T>
accumulate_t<T> row_sum_exp(const T* row, int64_t width, accumulate_t<T> max) {
  using A = accumulate_t<T>;
  A lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += fast_exp(load(row[i + lane]) - max);
  }
  A tail = 0;
  for (; i < width; ++i) tail += fast_exp(load(row[i]) - max);
  for (int64_t step = kLanes / 2; step > 0; step /= 2) {
    for (int64_t lane = 0; lane < step; ++lane) lanes[lane] += lanes[lane + step];
  }
  return lanes[0] + tail;
}

/// Whether `target` is the first place that holds the row's maximum.
template <typename T>
bool is_argmax(const T* row, int64_t target, accumulate_t<T> max) {
  if (!(load(row[target]) == max)) return false;
  for (int64_t i = 0; i < target; ++i) {
    if (load(row[i]) == max) return false;
  }
  return true;
}

}  // namespace

template <typename T>
void cross_entropy_rows(T* logits, const int64_t* targets, accumulate_t<T>* loss, int64_t* correct,
                        const accumulate_t<T>* scale, int64_t begin, int64_t end, int64_t vocabulary) {
  using A = accumulate_t<T>;
  for (int64_t r = begin; r < end; ++r) {
    T* row = logits + r * vocabulary;
    const int64_t target = targets[r];
    const A max = row_max(row, vocabulary);
    const A sum = row_sum_exp(row, vocabulary, max);
    // NaN logits do not win comparisons, but they do reach the sum, and through it the loss.
    loss[r] = std::log(sum) - (load(row[target]) - max);
    correct[r] = is_argmax(row, target, max) ? 1 : 0;
    if (scale == nullptr) continue;
    const A factor = *scale / sum;
    const A at_target = load(row[target]);
    for (int64_t i = 0; i < vocabulary; ++i) row[i] = store<T>(fast_exp(load(row[i]) - max) * factor);
    row[target] = store<T>(fast_exp(at_target - max) * factor - *scale);
  }
}

#define SATUNE_INSTANTIATE(T)                                                         \
  template void cross_entropy_rows<T>(T*, const int64_t*, accumulate_t<T>*, int64_t*, \
                                      const accumulate_t<T>*, int64_t, int64_t, int64_t);
SATUNE_FOR_EACH_TYPE(SATUNE_INSTANTIATE)
#undef SATUNE_INSTANTIATE

}  // namespace satune::kernels
