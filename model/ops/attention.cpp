#include "model/ops/attention.h"

#include <ATen/ATen.h>

#include "model/ops/attention_cudnn.h"
#include "model/ops/attention_devices.h"
#include "model/ops/dispatch.h"
#include "model/ops/product_type.h"

namespace satune {
namespace {

/// View of one document's rows as [1, heads, T, D].
at::Tensor document(const at::Tensor& x_NHD, int64_t start, int64_t length) {
  return x_NHD.narrow(0, start, length).transpose(0, 1).unsqueeze(0);
}

/// One document as the CPU kernels read it: widened where products of its type are slow.
at::Tensor operand(const at::Tensor& x_NHD, int64_t start, int64_t length) {
  return document(x_NHD, start, length).to(cpu_product_type(x_NHD.scalar_type()));
}

/// One past the last row of the documents that continue document i: in depth-first order they follow it.
int64_t subtree_end(const std::vector<int64_t>& starts, const std::vector<int64_t>& parents, int64_t i) {
  auto next = static_cast<size_t>(i + 1);
  while (next < parents.size() && parents[next] >= i) ++next;
  return starts[next];
}

/// Each document over itself, and then what continues a document over that document, in one call for all of
/// it. Softmaxes over disjoint sets of keys are one softmax once each is weighed by exp(its log-sum-exp).
at::Tensor forward_tree(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                        const std::vector<int64_t>& starts, const std::vector<int64_t>& parents) {
  const at::ScalarType product = cpu_product_type(q_NHD.scalar_type());
  const AttentionOut own = flash_cpu_forward(q_NHD.to(product), k_NKD.to(product), v_NKD.to(product), starts);
  const at::Tensor out_1HND = own.out_NHD.to(statistics_type(product)).transpose(0, 1).unsqueeze(0);
  const at::Tensor log_sum_1HN = own.saved[0].unsqueeze(0);
  for (size_t i = 0; i < parents.size(); ++i) {
    const int64_t begin = starts[i + 1], rows = subtree_end(starts, parents, static_cast<int64_t>(i)) - begin;
    if (rows == 0) continue;
    const auto [out, log_sum] = at::_scaled_dot_product_flash_attention_for_cpu(
        operand(q_NHD, begin, rows), operand(k_NKD, starts[i], begin - starts[i]),
        operand(v_NKD, starts[i], begin - starts[i]), 0.0, /*is_causal=*/false);
    const at::Tensor so_far = log_sum_1HN.narrow(2, begin, rows), sum = at::logaddexp(so_far, log_sum);
    const at::Tensor rows_out = out_1HND.narrow(2, begin, rows);
    rows_out.mul_((so_far - sum).exp_().unsqueeze(-1)).add_(out * (log_sum - sum).exp_().unsqueeze(-1));
    so_far.copy_(sum);
  }
  return out_1HND.squeeze(0).transpose(0, 1).to(q_NHD.scalar_type());
}

bool has_flash_kernel(const at::Tensor& q_NHD) {
  return q_NHD.is_cpu() || q_NHD.scalar_type() != at::kDouble;
}

}  // namespace

AttentionOut attention_forward(const at::Tensor& q_NHD, const at::Tensor& k_NKD, const at::Tensor& v_NKD,
                               const std::vector<int64_t>& document_starts, const AttentionOptions& options) {
  TORCH_CHECK(q_NHD.size(1) % k_NKD.size(1) == 0 && document_starts.back() == q_NHD.size(0));
  if (options.parents != nullptr && !options.parents->empty()) {
    TORCH_CHECK(q_NHD.is_cpu() && options.parents->size() + 1 == document_starts.size());
    return {forward_tree(q_NHD, k_NKD, v_NKD, document_starts, *options.parents), {}};
  }
  const AttentionChoice& choice = options.choice;
  if (choice.kernel == AttentionKernel::kEager || !has_flash_kernel(q_NHD))
    return eager_forward(q_NHD, k_NKD, v_NKD, document_starts);
  if (q_NHD.is_cpu()) return flash_cpu_forward(q_NHD, k_NKD, v_NKD, document_starts);
  if (choice.kernel == AttentionKernel::kCudnn) {
    TORCH_CHECK(choice.cudnn != nullptr, "AttentionChoice: kCudnn without its graphs");
    return choice.cudnn->forward(q_NHD, k_NKD, v_NKD, document_starts, options);
  }
  return flash_forward(q_NHD, k_NKD, v_NKD, document_starts, options);
}

void attention_backward(const at::Tensor& d_out_NHD, const at::Tensor& q_NHD, const at::Tensor& k_NKD,
                        const at::Tensor& v_NKD, const AttentionOut& forward,
                        const std::vector<int64_t>& document_starts, const at::Tensor& d_q_NHD,
                        const at::Tensor& d_k_NKD, const at::Tensor& d_v_NKD) {
  if (forward.choice.kernel == AttentionKernel::kEager) {
    eager_backward(d_out_NHD, q_NHD, k_NKD, v_NKD, document_starts, d_q_NHD, d_k_NKD, d_v_NKD);
  } else if (q_NHD.is_cpu()) {
    flash_cpu_backward(d_out_NHD, q_NHD, k_NKD, v_NKD, forward, document_starts, d_q_NHD, d_k_NKD, d_v_NKD);
  } else if (forward.choice.kernel == AttentionKernel::kCudnn && !forward.choice.in_fixed_order) {
    forward.choice.cudnn->backward(d_out_NHD, q_NHD, k_NKD, v_NKD, forward, document_starts, d_q_NHD, d_k_NKD,
                                   d_v_NKD);
  } else {
    flash_backward(d_out_NHD, q_NHD, k_NKD, v_NKD, forward, document_starts, d_q_NHD, d_k_NKD, d_v_NKD);
  }
}

}  // namespace satune
