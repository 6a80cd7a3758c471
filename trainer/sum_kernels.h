// Inner loops of a sum over ranks on the CPU: plain arrays, one thread, no LibTorch. Additions happen in the
// order of the parts, without contraction: an element's sum depends on nothing but its addends.
#pragma once

#include <cstdint>

namespace satune {

/// sum[i] = parts[0][i] + parts[1][i] + ..., from left to right, for i in [begin, end); with `accumulate` the
/// first addend is what stands in sum[i]. `count` >= 1; a part may be anything but `sum` itself.
void sum_parts_f32(const float* const* parts, int64_t count, float* sum, int64_t begin, int64_t end,
                   bool accumulate);
void sum_parts_f64(const double* const* parts, int64_t count, double* sum, int64_t begin, int64_t end,
                   bool accumulate);
/// The same of bf16 and fp16 bit patterns.
void sum_parts_bf16(const uint16_t* const* parts, int64_t count, float* sum, int64_t begin, int64_t end,
                    bool accumulate);
void sum_parts_f16(const uint16_t* const* parts, int64_t count, float* sum, int64_t begin, int64_t end,
                   bool accumulate);

}  // namespace satune
