// Compiled with SATUNE_VARIANT=NAME and that instruction set.
#include "tests/model/attention_variant.h"

#include <c10/util/Half.h>

#include <vector>

#define kernels SATUNE_VARIANT
#include "model/ops/attention_cpu.cpp"

namespace satune::SATUNE_VARIANT {
namespace {

template <typename T>
void run(const AttentionArrays<T>& x) {
  using A = accumulate_t<T>;
  const int64_t width = x.heads * x.head_dim, sums = x.length * attention_columns<T>(x.head_dim);
  const HeadGroup<T> group{x.length, x.head_dim, x.heads, {x.q, width}, {x.k, x.head_dim}, {x.v, x.head_dim}};
  std::vector<A> log_sum(x.heads * x.length), d_k(sums), d_v(sums);
  std::vector<std::byte> memory(std::max(attention_forward_workspace<T>(x.length, x.head_dim),
                                         attention_backward_workspace<T>(x.length, x.head_dim)));
  attention_forward<T>(group, 0, x.length, {x.out, width}, log_sum.data(), x.length, memory.data());
  const HeadGroupGradient<T> gradient{
      {x.d_out, width}, {x.out, width}, log_sum.data(), x.length, {x.d_q, width}};
  attention_backward<T>(group, gradient, 0, x.heads, d_k.data(), d_v.data(), memory.data());
  const int64_t columns = attention_columns<T>(x.head_dim);
  attention_store<T>(d_k.data(), columns, x.length, x.head_dim, {x.d_k, x.head_dim});
  attention_store<T>(d_v.data(), columns, x.length, x.head_dim, {x.d_v, x.head_dim});
}

}  // namespace

void attend(const AttentionArrays<float>& x) {
  run(x);
}
void attend(const AttentionArrays<c10::BFloat16>& x) {
  run(x);
}

}  // namespace satune::SATUNE_VARIANT
