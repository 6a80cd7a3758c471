#include "model/ops/embedding.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <numeric>
#include <vector>

#include "model/ops/cuda_stream.h"
#include "model/ops/dispatch.h"
#include "model/ops/kernel_types.h"

namespace satune {
namespace {

/// Tokens' places grouped by id, ascending, each group in the order of N.
struct Groups {
  std::vector<int64_t> order;   ///< places in N
  std::vector<int64_t> starts;  ///< first place of each group, and the end
};

Groups group_by_token(const int64_t* tokens, int64_t count) {
  Groups groups;
  groups.order.resize(count);
  std::iota(groups.order.begin(), groups.order.end(), int64_t{0});
  std::stable_sort(groups.order.begin(), groups.order.end(),
                   [&](int64_t a, int64_t b) { return tokens[a] < tokens[b]; });
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || tokens[groups.order[i]] != tokens[groups.order[i - 1]]) groups.starts.push_back(i);
  }
  groups.starts.push_back(count);
  return groups;
}

template <typename T, typename G>
void add_rows(const T* d_out, const int64_t* tokens, const Groups& groups, G* d_weight, int64_t width) {
  using A = kernels::accumulate_t<T>;
  const int64_t group_count = static_cast<int64_t>(groups.starts.size()) - 1;
  at::parallel_for(0, group_count, rows_per_task(width), [&](int64_t begin, int64_t end) {
    std::vector<A> sum(width);
    for (int64_t group = begin; group < end; ++group) {
      std::fill(sum.begin(), sum.end(), A(0));
      for (int64_t i = groups.starts[group]; i < groups.starts[group + 1]; ++i) {
        const T* row = d_out + groups.order[i] * width;
        for (int64_t c = 0; c < width; ++c) sum[c] += kernels::load(row[c]);
      }
      G* out = d_weight + tokens[groups.order[groups.starts[group]]] * width;
      for (int64_t c = 0; c < width; ++c) {
        out[c] = kernels::store<G>(static_cast<kernels::accumulate_t<G>>(kernels::load(out[c]) + sum[c]));
      }
    }
  });
}

/// Sorted on the card; what the host would have to wait for, the number of different tokens, it need not
/// know.
void backward_on_card(const at::Tensor& d_out_NC, const at::Tensor& tokens_N, const at::Tensor& d_weight_VC) {
  const auto [sorted_N, places_N] = at::sort(tokens_N, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  cuda::embedding_backward(cuda::element_of(d_out_NC), d_out_NC.const_data_ptr(),
                           sorted_N.const_data_ptr<int64_t>(), places_N.const_data_ptr<int64_t>(),
                           cuda::element_of(d_weight_VC), d_weight_VC.mutable_data_ptr(), d_out_NC.size(0),
                           d_out_NC.size(1), cuda::current_stream(d_out_NC));
}

}  // namespace

at::Tensor embedding_forward(const at::Tensor& weight_VC, const at::Tensor& tokens_N) {
  return weight_VC.index_select(0, tokens_N);
}

void embedding_backward(const at::Tensor& d_out_NC, const at::Tensor& tokens_N, const at::Tensor& d_weight_VC,
                        bool accumulate) {
  TORCH_CHECK(d_out_NC.is_contiguous() && d_weight_VC.is_contiguous());
  if (!accumulate) d_weight_VC.zero_();
  if (cuda::on_card(d_out_NC)) return backward_on_card(d_out_NC, tokens_N, d_weight_VC);
  const int64_t* tokens = tokens_N.const_data_ptr<int64_t>();
  const Groups groups = group_by_token(tokens, tokens_N.size(0));
  dispatch_floating(d_out_NC.scalar_type(), [&]<typename T>() {
    dispatch_floating(d_weight_VC.scalar_type(), [&]<typename G>() {
      add_rows<T, G>(d_out_NC.const_data_ptr<T>(), tokens, groups, d_weight_VC.mutable_data_ptr<G>(),
                     d_out_NC.size(1));
    });
  });
}

}  // namespace satune
