#include "model/ops/linear_cross_entropy.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "model/ops/cross_entropy_kernels.h"
#include "model/ops/cuda_stream.h"
#include "model/ops/dispatch.h"
#include "model/ops/linear.h"

namespace satune {
namespace {

/// Per-row results of one chunk; the logits become their gradient when `scale` is given.
struct ChunkOut {
  at::Tensor loss_n, correct_n;
};

ChunkOut cross_entropy_chunk(at::Tensor& logits_nV, const at::Tensor& targets_n, const double* scale) {
  TORCH_CHECK(logits_nV.is_contiguous() && targets_n.is_contiguous());
  const int64_t rows = logits_nV.size(0), vocabulary = logits_nV.size(1);
  ChunkOut out{at::empty({rows}, logits_nV.options().dtype(statistics_type(logits_nV.scalar_type()))),
               at::empty({rows}, targets_n.options())};
  if (cuda::on_card(logits_nV)) {
    cuda::cross_entropy_rows(cuda::element_of(logits_nV), logits_nV.mutable_data_ptr(),
                             targets_n.const_data_ptr<int64_t>(), out.loss_n.mutable_data_ptr(),
                             out.correct_n.mutable_data_ptr<int64_t>(), scale, rows, vocabulary,
                             cuda::current_stream(logits_nV));
    return out;
  }
  dispatch_floating(logits_nV.scalar_type(), [&]<typename T>() {
    using A = kernels::accumulate_t<T>;
    const A factor = scale != nullptr ? static_cast<A>(*scale) : A(0);
    at::parallel_for(0, rows, rows_per_task(vocabulary), [&](int64_t begin, int64_t end) {
      kernels::cross_entropy_rows<T>(logits_nV.mutable_data_ptr<T>(), targets_n.const_data_ptr<int64_t>(),
                                     out.loss_n.mutable_data_ptr<A>(),
                                     out.correct_n.mutable_data_ptr<int64_t>(),
                                     scale != nullptr ? &factor : nullptr, begin, end, vocabulary);
    });
  });
  return out;
}

CrossEntropySums zero_sums(const at::Tensor& hidden_NC) {
  return {at::zeros({}, hidden_NC.options().dtype(at::kDouble)),
          at::zeros({}, hidden_NC.options().dtype(at::kLong))};
}

/// Calls f(rows, ids, first) over chunks of the targets.
template <typename F>
void for_each_chunk(const Targets& targets, const at::Tensor& weight_VC, F&& f) {
  const int64_t chunk = cross_entropy_chunk_rows(weight_VC.size(0), cuda::on_card(weight_VC));
  for (int64_t first = 0; first < targets.count(); first += chunk) {
    const int64_t count = std::min(chunk, targets.count() - first);
    f(targets.rows_M.narrow(0, first, count), targets.ids_M.narrow(0, first, count), first);
  }
}

/// Where the head's gradient is summed: the buffer itself, or fp32 beside it when several chunks would be
/// rounded to a narrower type one by one.
class WeightGradient {
 public:
  WeightGradient(const at::Tensor& target, bool accumulate, bool several_chunks)
      : target_(target), accumulate_(accumulate) {
    const bool narrow = target.defined() && target.scalar_type() != statistics_type(target.scalar_type());
    if (narrow && several_chunks) wide_ = at::zeros(target.sizes(), target.options().dtype(at::kFloat));
  }
  void add(const at::Tensor& d_logits_nV, const at::Tensor& hidden_nC) {
    if (!target_.defined()) return;
    if (wide_.defined()) {
      linear_backward_weight(d_logits_nV, hidden_nC, wide_, true);
    } else {
      linear_backward_weight(d_logits_nV, hidden_nC, target_, accumulate_);
      accumulate_ = true;
    }
  }
  void finish() {
    if (wide_.defined()) write_gradient(target_, wide_, accumulate_);
  }

 private:
  at::Tensor target_, wide_;
  bool accumulate_;
};

}  // namespace

int64_t cross_entropy_chunk_rows(int64_t vocabulary, bool on_card) {
  constexpr int64_t kMostElements = int64_t{1} << 26;
  const int64_t most = std::max<int64_t>(1, kMostElements / vocabulary);
  if (on_card) return most;
  constexpr int64_t kRows = 512, kElements = int64_t{1} << 22;
  return std::min(most, std::max(kRows, kElements / vocabulary));
}

CrossEntropySums linear_cross_entropy_forward(const at::Tensor& hidden_NC, const at::Tensor& weight_VC,
                                              const Targets& targets, at::Tensor* losses_M) {
  CrossEntropySums sums = zero_sums(hidden_NC);
  if (losses_M != nullptr) {
    *losses_M =
        at::empty({targets.count()}, hidden_NC.options().dtype(statistics_type(hidden_NC.scalar_type())));
  }
  for_each_chunk(targets, weight_VC, [&](const at::Tensor& rows_n, const at::Tensor& ids_n, int64_t first) {
    at::Tensor logits = linear_forward(hidden_NC.index_select(0, rows_n), weight_VC);
    const ChunkOut out = cross_entropy_chunk(logits, ids_n, nullptr);
    sums.loss.add_(out.loss_n.sum(at::kDouble));
    sums.correct.add_(out.correct_n.sum());
    if (losses_M != nullptr) losses_M->narrow(0, first, rows_n.size(0)).copy_(out.loss_n);
  });
  return sums;
}

at::Tensor losses_by_row(const at::Tensor& losses_M, const Targets& targets, int64_t rows) {
  const at::Tensor losses_N = at::zeros({rows}, losses_M.options());
  return targets.count() > 0 ? losses_N.index_copy(0, targets.rows_M, losses_M) : losses_N;
}

CrossEntropyGradients linear_cross_entropy_backward(const at::Tensor& hidden_NC, const at::Tensor& weight_VC,
                                                    const Targets& targets, double scale,
                                                    const at::Tensor& d_weight_VC, bool accumulate) {
  CrossEntropyGradients result{zero_sums(hidden_NC), at::zeros_like(hidden_NC)};
  if (targets.count() == 0) {
    if (d_weight_VC.defined() && !accumulate) d_weight_VC.zero_();
    return result;
  }
  WeightGradient d_weight(
      d_weight_VC, accumulate,
      targets.count() > cross_entropy_chunk_rows(weight_VC.size(0), cuda::on_card(weight_VC)));
  for_each_chunk(targets, weight_VC, [&](const at::Tensor& rows_n, const at::Tensor& ids_n, int64_t) {
    const at::Tensor hidden_nC = hidden_NC.index_select(0, rows_n);
    at::Tensor logits = linear_forward(hidden_nC, weight_VC);
    const ChunkOut out = cross_entropy_chunk(logits, ids_n, &scale);
    result.sums.loss.add_(out.loss_n.sum(at::kDouble));
    result.sums.correct.add_(out.correct_n.sum());
    d_weight.add(logits, hidden_nC);
    result.d_hidden_NC.index_copy_(0, rows_n, linear_backward_input(logits, weight_VC));
  });
  d_weight.finish();
  return result;
}

}  // namespace satune
