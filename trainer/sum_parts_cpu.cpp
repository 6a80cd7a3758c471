#include "trainer/cpu_clones.h"
#include "trainer/sum_kernels.h"

namespace satune {
namespace {

struct Same {
  template <typename Value>
  SATUNE_INLINE Value operator()(Value value) const {
    return value;
  }
};

struct FromBf16 {
  SATUNE_INLINE float operator()(uint16_t bits) const {
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
  }
};

struct FromF16 {
  /// By integer operations and selections, which vectorise in every clone; exact also where the processor
  /// treats subnormal operands as zero.
  SATUNE_INLINE float operator()(uint16_t bits) const {
    constexpr uint32_t kRebias = (127U - 15U) << 23;
    const uint32_t exponent = bits & 0x7c00U;
    const uint32_t normal = ((bits & 0x7fffU) << 13) + kRebias;
    const uint32_t infinite = normal + kRebias;
    const auto subnormal =
        __builtin_bit_cast(uint32_t, static_cast<float>(static_cast<int32_t>(bits & 0x03ffU)) * 0x1p-24F);
    const uint32_t magnitude = exponent == 0 ? subnormal : exponent == 0x7c00U ? infinite : normal;
    return __builtin_bit_cast(float, magnitude | (static_cast<uint32_t>(bits & 0x8000U) << 16));
  }
};

// A block of sums stays in the first-level cache while all parts are added to it.
constexpr int64_t kBlock = 1024;

template <typename Convert, typename Part, typename Sum>
SATUNE_INLINE void sum_block(const Part* const* parts, int64_t count, Sum* __restrict sum, int64_t begin,
                             int64_t n, bool accumulate) {
  constexpr Convert kConvert;
  Sum block[kBlock];
  int64_t next = 0;
  if (accumulate) {
    for (int64_t i = 0; i < n; ++i) block[i] = sum[begin + i];
  } else {
    const Part* __restrict part = parts[next++] + begin;
    for (int64_t i = 0; i < n; ++i) block[i] = kConvert(part[i]);
  }
  for (; next < count; ++next) {
    const Part* __restrict part = parts[next] + begin;
    for (int64_t i = 0; i < n; ++i) block[i] += kConvert(part[i]);
  }
  for (int64_t i = 0; i < n; ++i) sum[begin + i] = block[i];
}

template <typename Convert, typename Part, typename Sum>
SATUNE_INLINE void sum_blocks(const Part* const* parts, int64_t count, Sum* sum, int64_t begin, int64_t end,
                              bool accumulate) {
  for (; begin + kBlock <= end; begin += kBlock) {
    sum_block<Convert>(parts, count, sum, begin, kBlock, accumulate);
  }
  sum_block<Convert>(parts, count, sum, begin, end - begin, accumulate);
}

}  // namespace

SATUNE_CLONES
void sum_parts_f32(const float* const* parts, int64_t count, float* sum, int64_t begin, int64_t end,
                   bool accumulate) {
  sum_blocks<Same>(parts, count, sum, begin, end, accumulate);
}

SATUNE_CLONES
void sum_parts_f64(const double* const* parts, int64_t count, double* sum, int64_t begin, int64_t end,
                   bool accumulate) {
  sum_blocks<Same>(parts, count, sum, begin, end, accumulate);
}

SATUNE_CLONES
void sum_parts_bf16(const uint16_t* const* parts, int64_t count, float* sum, int64_t begin, int64_t end,
                    bool accumulate) {
  sum_blocks<FromBf16>(parts, count, sum, begin, end, accumulate);
}

SATUNE_CLONES
void sum_parts_f16(const uint16_t* const* parts, int64_t count, float* sum, int64_t begin, int64_t end,
                   bool accumulate) {
  sum_blocks<FromF16>(parts, count, sum, begin, end, accumulate);
}

}  // namespace satune
