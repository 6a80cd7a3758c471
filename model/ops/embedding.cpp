#include "model/ops/embedding.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <numeric>
#include <vector>

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

}  // namespace

at::Tensor embedding_forward(const at::Tensor& weight_VC, const at::Tensor& tokens_N) {
  return weight_VC.index_select(0, tokens_N);
}

void embedding_backward(const at::Tensor& d_out_NC, const at::Tensor& tokens_N, const at::Tensor& d_weight_VC,
                        bool accumulate) {
  if (!accumulate) d_weight_VC.zero_();
  if (!d_out_NC.is_cpu()) {
    // Sorted and summed per token: repeatable, unlike index_add.
    const at::Tensor dense = at::embedding_dense_backward(
        d_out_NC.to(statistics_type(d_out_NC.scalar_type())), tokens_N, d_weight_VC.size(0), -1, false);
    d_weight_VC.add_(dense);
    return;
  }
  TORCH_CHECK(d_out_NC.is_contiguous() && d_weight_VC.is_contiguous());
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
