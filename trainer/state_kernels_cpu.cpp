#include "trainer/cpu_clones.h"
#include "trainer/state_kernels.h"

namespace satune {
namespace {

constexpr uint32_t kInfinity = 0x7f800000U;
constexpr uint32_t kTie = 0x8000U;  // rounded down: the difference that two's complement has no room for

SATUNE_INLINE uint32_t bits_of(float value) {
  return __builtin_bit_cast(uint32_t, value);
}
SATUNE_INLINE float value_of(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}
SATUNE_INLINE bool is_nan(uint32_t bits) {
  return (bits & 0x7fffffffU) > kInfinity;
}

// Levels: the bit pattern of a magnitude without its lower 20 bits.
constexpr int kLevelShift = 20;
constexpr uint32_t kHighestFinite = (kInfinity >> kLevelShift) - 1;
constexpr uint32_t kHalf = 0x80000000U;  // as noise: round to nearest

/// The level a magnitude is rounded to; finite ones stay finite.
SATUNE_INLINE uint32_t level_of(uint32_t magnitude, uint32_t noise) {
  const uint32_t rounded = (magnitude + (noise >> (32 - kLevelShift))) >> kLevelShift;
  const uint32_t down = magnitude >> kLevelShift;
  const uint32_t most = down > kHighestFinite ? down : kHighestFinite;
  return rounded < most ? rounded : most;
}

/// Levels of a block, and the highest.
SATUNE_INLINE uint32_t levels_of(const float* __restrict from, const uint32_t* __restrict noise,
                                 uint32_t* __restrict levels, int64_t n) {
  uint32_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    levels[i] = level_of(bits_of(from[i]) & 0x7fffffffU, noise[i]);
    top = levels[i] > top ? levels[i] : top;
  }
  return top;
}

/// `noise`, or where there is none what rounds to nearest.
SATUNE_INLINE const uint32_t* or_nearest(const uint32_t* noise, uint32_t* nearest) {
  if (noise != nullptr) return noise;
  for (int64_t i = 0; i < kStateBlock; ++i) nearest[i] = kHalf;
  return nearest;
}

}  // namespace

SATUNE_CLONES
void split_masters(const float* __restrict masters, uint16_t* __restrict weights,
                   uint16_t* __restrict remainders, uint8_t* __restrict ties, int64_t n) {
  uint32_t any = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = bits_of(masters[i]);
    const bool nan = is_nan(bits);
    const uint32_t weight = nan ? (bits >> 16) | 0x0040U : (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    const uint32_t remainder = nan ? 0U : bits - (weight << 16);
    weights[i] = static_cast<uint16_t>(weight);
    remainders[i] = static_cast<uint16_t>(remainder);
    any |= remainder == kTie ? 1U : 0U;
  }
  for (int64_t i = 0; i < n / 8; ++i) ties[i] = 0;
  if (any == 0) return;  // as is nearly always so: one number in 2^17 is such a tie
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = bits_of(masters[i]);
    const bool tie = !is_nan(bits) && bits - (static_cast<uint32_t>(weights[i]) << 16) == kTie;
    ties[i / 8] = static_cast<uint8_t>(ties[i / 8] | ((tie ? 1U : 0U) << (i % 8)));
  }
}

SATUNE_CLONES
void join_masters(const uint16_t* __restrict weights, const uint16_t* __restrict remainders,
                  const uint8_t* __restrict ties, float* __restrict masters, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t remainder = remainders[i];  // two's complement, but for the ties
    masters[i] = value_of((static_cast<uint32_t>(weights[i]) << 16) + remainder - ((remainder >> 15) << 16));
  }
  for (int64_t i = 0; i < n / 8; ++i) {
    if (ties[i] == 0) continue;
    for (int64_t k = 8 * i; k < 8 * i + 8; ++k) {
      const uint32_t borrow = ((static_cast<uint32_t>(ties[i]) >> (k % 8)) & 1U) << 16;
      masters[k] = value_of(bits_of(masters[k]) + borrow);
    }
  }
}

SATUNE_CLONES
void round_to_bf16_stochastically(const float* from, const uint32_t* noise, uint16_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = bits_of(from[i]);
    const uint32_t down = bits >> 16, rounded = (bits + (noise[i] >> 16)) >> 16;
    const bool above = (rounded & 0x7fffU) >= (kInfinity >> 16);  // infinity, NaN or what would become one
    to[i] = static_cast<uint16_t>(is_nan(bits) ? down | 0x0040U : above ? down : rounded);
  }
}

SATUNE_CLONES
void widen_bf16(const uint16_t* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = value_of(static_cast<uint32_t>(from[i]) << 16);
}

SATUNE_CLONES
void encode_first_moments(const float* from, const uint32_t* noise, uint8_t* codes, float* scale, int64_t n) {
  uint32_t levels[kStateBlock], nearest[kStateBlock];
  noise = or_nearest(noise, nearest);
  const uint32_t top = levels_of(from, noise, levels, n);
  const uint32_t lowest = top > 127 ? top - 126 : 1;  // of code 1
  const float step = value_of(lowest << kLevelShift);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = bits_of(from[i]), sign = (bits >> 31) << 7;
    // 24 bits, which fp32 has exactly.
    const float threshold = static_cast<float>(static_cast<int32_t>(noise[i] >> 8)) * 0x1p-24F * step;
    const uint32_t below = value_of(bits & 0x7fffffffU) > threshold ? 1U : 0U;
    const uint32_t code = levels[i] < lowest ? below : levels[i] - lowest + 1;
    codes[i] = static_cast<uint8_t>(code == 0 ? 0U : sign | code);
  }
  // A block of nothing but what is below the lowest level of all.
  const uint32_t highest = top < lowest ? lowest : top;
  bool empty = true;
  for (int64_t i = 0; i < n; ++i) empty = empty && codes[i] == 0;
  *scale = empty ? 0.0F : value_of(highest << kLevelShift);
}

SATUNE_CLONES
void decode_first_moments(const uint8_t* codes, float scale, float* to, int64_t n) {
  const uint32_t top = bits_of(scale) >> kLevelShift, lowest = top > 127 ? top - 126 : 1;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t code = codes[i] & 0x7fU, sign = (static_cast<uint32_t>(codes[i]) >> 7) << 31;
    to[i] = value_of(code == 0 ? 0U : sign | ((lowest + code - 1) << kLevelShift));
  }
}

SATUNE_CLONES
void encode_second_moments(const float* from, const uint32_t* noise, uint8_t* codes, float* scale,
                           int64_t n) {
  uint32_t levels[kStateBlock], nearest[kStateBlock];
  noise = or_nearest(noise, nearest);
  uint32_t top = levels_of(from, noise, levels, n);
  bool empty = true;
  for (int64_t i = 0; i < n; ++i) empty = empty && from[i] == 0.0F;
  if (top == 0) top = 1;
  const uint32_t lowest = top > 255 ? top - 254 : 1;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t code = levels[i] < lowest ? 1U : levels[i] - lowest + 1;
    codes[i] = static_cast<uint8_t>(from[i] == 0.0F ? 0U : code);
  }
  *scale = empty ? 0.0F : value_of(top << kLevelShift);
}

SATUNE_CLONES
void decode_second_moments(const uint8_t* codes, float scale, float* to, int64_t n) {
  const uint32_t top = bits_of(scale) >> kLevelShift, lowest = top > 255 ? top - 254 : 1;
  for (int64_t i = 0; i < n; ++i) {
    to[i] = value_of(codes[i] == 0 ? 0U : (lowest + codes[i] - 1) << kLevelShift);
  }
}

}  // namespace satune
