// The CPU's attention kernels once more, compiled for each instruction set that they have code for: a build
// has them for its own machine alone.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace satune {

/// One document and one key/value head: q, d_out, out, d_q [length, heads, head_dim]; the others
/// [length, head_dim].
template <typename T>
struct AttentionArrays {
  int64_t length, heads, head_dim;
  const T *q, *k, *v, *d_out;
  T *out, *d_q, *d_k, *d_v;
};

#define SATUNE_DECLARE_VARIANT(name)                                                           \
  namespace name {                                                                             \
  __attribute__((visibility("default"))) void attend(const AttentionArrays<float>& x);         \
  __attribute__((visibility("default"))) void attend(const AttentionArrays<c10::BFloat16>& x); \
  }
SATUNE_DECLARE_VARIANT(baseline)
SATUNE_DECLARE_VARIANT(avx2)
SATUNE_DECLARE_VARIANT(avx512)
SATUNE_DECLARE_VARIANT(avx512_bf16)
#undef SATUNE_DECLARE_VARIANT

}  // namespace satune
