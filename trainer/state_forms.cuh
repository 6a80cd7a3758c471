// The formats of trainer/state_kernels.h and the noise of trainer/rounding_noise.h inside a kernel, to the
// bits of the CPU's. A warp has a block of the state (kStateBlock elements), a thread four neighbouring
// elements in each half of it: accesses of a warp lie side by side in every format, a block's largest number
// is found by shuffles, and four words of noise are those of one counter where tensors begin on multiples of
// four.
#pragma once

#include "model/ops/cuda_reduce.cuh"
#include "trainer/state_form.h"

namespace satune::cuda {

constexpr int kQuad = 4;                  // neighbouring elements of a thread
constexpr int kQuads = 2;                 // of a thread
constexpr int kOwned = kQuad * kQuads;    // elements of a thread
constexpr int kQuadStep = kWarp * kQuad;  // from one to the next
static_assert(kWarp * kOwned == kStateBlock);

/// fp32 numbers, or words of noise, of the elements of a thread.
using Values = float[kOwned];
using Words = uint32_t[kOwned];

/// The elements of a thread in a block of the state.
struct Place {
  uint32_t block;  ///< its number
  int lane;
  int count;  ///< elements of the block; fewer at a share's end

  __device__ int64_t begin() const { return int64_t{block} * kStateBlock; }
  /// First element of quad q, from the block's beginning.
  __device__ int quad(int q) const { return q * kQuadStep + lane * kQuad; }
  /// Elements from there on; not positive behind the end.
  __device__ int left(int q) const { return count - quad(q); }
};

/// Quad q; 0 for what lies behind the end.
template <bool kVector, typename T>
__device__ inline Pack<T, kQuad> read_quad(const T* array, const Place& place, int q) {
  const int left = place.left(q);
  if (left <= 0) return {};
  return read<kVector, kQuad>(array + place.begin() + place.quad(q), left);
}
template <bool kVector, typename T>
__device__ inline void write_quad(T* array, const Pack<T, kQuad>& pack, const Place& place, int q) {
  const int left = place.left(q);
  if (left > 0) write<kVector, kQuad>(array + place.begin() + place.quad(q), pack, left);
}

/// What a thread owns of an array, each number through `widen`.
template <bool kVector, typename T, typename F>
__device__ inline void read_values(const T* array, Values& values, const Place& place, F&& widen) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const auto pack = read_quad<kVector>(array, place, q);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) values[q * kQuad + i] = widen(pack.values[i]);
  }
}

// --- rounding ---

constexpr uint32_t kInfinity = 0x7f800000U;

__device__ inline bool is_nan_bits(uint32_t bits) {
  return (bits & 0x7fffffffU) > kInfinity;
}

/// Bits of the nearest bf16, ties to even; NaN keeps its sign and payload.
__device__ inline uint32_t nearest_bf16(uint32_t bits) {
  return is_nan_bits(bits) ? (bits >> 16) | 0x0040U : (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
}

/// As trainer/adamw_kernels.h rounds weights from an fp32 master.
__device__ inline __nv_bfloat16 round_weight(float value, __nv_bfloat16) {
  return __ushort_as_bfloat16(static_cast<unsigned short>(nearest_bf16(__float_as_uint(value))));
}
__device__ inline __half round_weight(float value, __half) {
  return __float2half_rn(value);
}
__device__ inline float round_weight(float value, float) {
  return value;
}

// --- noise ---

constexpr int kRounds = 10;

/// What the noise of a whole update has in common. The keys of the rounds are worked out on the host: as
/// constants of the kernel they take no registers.
struct NoiseSource {
  uint32_t low[kRounds], high[kRounds];
  uint32_t update;

  NoiseSource(uint64_t seed, int64_t number) : update(static_cast<uint32_t>(number)) {
    for (uint32_t round = 0; round < kRounds; ++round) {
      low[round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9U;
      high[round] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85U;
    }
  }
};

/// The four words of a counter (Philox4x32-10, trainer/rounding_noise.h): of elements 4 * group and on.
__device__ inline void noise_words(const NoiseSource& source, uint32_t tensor, uint32_t array, uint32_t group,
                                   uint32_t (&words)[kQuad]) {
  uint32_t c0 = group, c1 = array << 28, c2 = source.update, c3 = tensor;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = uint64_t{0xD2511F53U} * c0, b = uint64_t{0xCD9E8D57U} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ source.low[round];
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ source.high[round];
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

/// Words of elements [element, element + kQuad) of a tensor, which may begin before it. kWhole: all of one
/// counter.
template <bool kWhole>
__device__ inline void noise_of_quad(const NoiseSource& source, uint32_t tensor, uint32_t array,
                                     int64_t element, uint32_t (&words)[kQuad]) {
  const auto group = static_cast<uint32_t>(element >> 2);
  noise_words(source, tensor, array, group, words);
  if constexpr (!kWhole) {
    // The rest of one counter and the beginning of the next; by constant indices, so that words stay in
    // registers.
    const auto skipped = static_cast<int>(element & 3);
    uint32_t next[kQuad];
    noise_words(source, tensor, array, group + 1, next);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      uint32_t word = words[i];
#pragma unroll
      for (int k = i + 1; k < kQuad; ++k) word = k == i + skipped ? words[k] : word;
#pragma unroll
      for (int k = 0; k < i; ++k) word = k + kQuad == i + skipped ? next[k] : word;
      words[i] = word;
    }
  }
}

// --- forms ---
//
// Each reads the numbers of a thread as fp32 and writes them back; all threads of a warp call together.
// kNoisy: with the noise that is given. Weight: of a master, the type of the weights. of() begins at an
// element on a border of kStateTile. fits(): whether quads of n elements can be moved at once.

template <typename T>
T* elements_from(void* array, int64_t begin) {
  return static_cast<T*>(array) + begin;
}

/// fp32.
struct Fp32State {
  static constexpr bool kNoisy = false;
  float* numbers;

  static Fp32State of(const StateMemory& memory, int64_t begin) {
    return {elements_from<float>(memory.numbers, begin)};
  }
  bool fits(int64_t n) const { return fits_packs<kQuad>(numbers, n); }

  template <bool kVector>
  __device__ void read_into(Values& values, const Place& place) const {
    read_values<kVector>(numbers, values, place, [](float number) { return number; });
  }
  template <bool kVector>
  __device__ void write_from(const Values& values, const Words&, const Place& place) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      Pack<float, kQuad> pack;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) pack.values[i] = values[q * kQuad + i];
      write_quad<kVector>(numbers, pack, place, q);
    }
  }
};

/// An fp32 master and the weights that are rounded from it.
template <typename W>
struct Fp32Master : Fp32State {
  using Weight = W;
  W* weights;

  static Fp32Master of(const StateMemory& memory, int64_t begin) {
    return {Fp32State::of(memory, begin), elements_from<W>(memory.weights, begin)};
  }
  bool fits(int64_t n) const { return Fp32State::fits(n) && fits_packs<kQuad>(weights, n); }

  template <bool kVector>
  __device__ void write_from(const Values& values, const Words& noise, const Place& place) const {
    Fp32State::write_from<kVector>(values, noise, place);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      Pack<W, kQuad> pack;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) pack.values[i] = round_weight(values[q * kQuad + i], W{});
      write_quad<kVector>(weights, pack, place, q);
    }
  }
};
/// fp32 weights, which are the master.
template <>
struct Fp32Master<float> : Fp32State {
  using Weight = float;

  static Fp32Master of(const StateMemory& memory, int64_t begin) { return {Fp32State::of(memory, begin)}; }
};

/// bf16 weights, 16-bit remainders and a bit for ties, of two neighbouring lanes in a byte.
struct SplitMaster {
  using Weight = __nv_bfloat16;
  static constexpr bool kNoisy = false;
  uint16_t *weights, *remainders;
  uint8_t* ties;

  static SplitMaster of(const StateMemory& memory, int64_t begin) {
    return {elements_from<uint16_t>(memory.weights, begin), elements_from<uint16_t>(memory.numbers, begin),
            elements_from<uint8_t>(memory.extra, begin / kTieBits)};
  }
  bool fits(int64_t n) const { return fits_packs<kQuad>(weights, n) && fits_packs<kQuad>(remainders, n); }

  template <bool kVector>
  __device__ void read_into(Values& values, const Place& place) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const auto upper = read_quad<kVector>(weights, place, q);
      const auto lower = read_quad<kVector>(remainders, place, q);
      uint32_t byte = 0;
      if (place.left(q) > 0) {
        byte = ties[(place.begin() + place.quad(q)) / kTieBits];
        if (place.lane % 2 == 0) count_read(1);
      }
      const uint32_t bits = byte >> (place.lane % 2 * kQuad);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const uint32_t remainder = lower.values[i];  // two's complement, but for the ties
        values[q * kQuad + i] = __uint_as_float((static_cast<uint32_t>(upper.values[i]) << 16) + remainder -
                                                ((remainder >> 15) << 16) + (((bits >> i) & 1U) << 16));
      }
    }
  }
  template <bool kVector>
  __device__ void write_from(const Values& values, const Words&, const Place& place) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      Pack<uint16_t, kQuad> upper, lower;
      uint32_t tied = 0;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const uint32_t bits = __float_as_uint(values[q * kQuad + i]), weight = nearest_bf16(bits);
        const uint32_t remainder = is_nan_bits(bits) ? 0U : bits - (weight << 16);
        upper.values[i] = static_cast<uint16_t>(weight);
        lower.values[i] = static_cast<uint16_t>(remainder);
        tied |= (remainder == 0x8000U ? 1U : 0U) << i;
      }
      write_quad<kVector>(weights, upper, place, q);
      write_quad<kVector>(remainders, lower, place, q);
      const uint32_t others = __shfl_xor_sync(0xffffffffU, tied, 1);
      if (place.lane % 2 == 0 && place.left(q) > 0) {
        ties[(place.begin() + place.quad(q)) / kTieBits] = static_cast<uint8_t>(tied | (others << kQuad));
        count_write(1);
      }
    }
  }
};

/// bf16, rounded stochastically.
struct Bf16State {
  using Weight = __nv_bfloat16;  // of a master
  static constexpr bool kNoisy = true;
  uint16_t* numbers;

  static Bf16State of(const StateMemory& memory, int64_t begin) {
    return {elements_from<uint16_t>(memory.numbers, begin)};
  }
  bool fits(int64_t n) const { return fits_packs<kQuad>(numbers, n); }

  template <bool kVector>
  __device__ void read_into(Values& values, const Place& place) const {
    read_values<kVector>(numbers, values, place, [](uint16_t number) {
      return __uint_as_float(static_cast<uint32_t>(number) << 16);
    });
  }
  template <bool kVector>
  __device__ void write_from(const Values& values, const Words& noise, const Place& place) const {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      Pack<uint16_t, kQuad> pack;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const uint32_t bits = __float_as_uint(values[q * kQuad + i]), down = bits >> 16;
        const uint32_t rounded = (bits + (noise[q * kQuad + i] >> 16)) >> 16;
        // Infinity, NaN or what would become one.
        const bool above = (rounded & 0x7fffU) >= (kInfinity >> 16);
        pack.values[i] = static_cast<uint16_t>(is_nan_bits(bits) ? down | 0x0040U : above ? down : rounded);
      }
      write_quad<kVector>(numbers, pack, place, q);
    }
  }
};

// Levels: the bit pattern of a magnitude without its lower 20 bits.
constexpr int kLevelShift = 20;
constexpr uint32_t kHighestFinite = (kInfinity >> kLevelShift) - 1;

/// The level a magnitude is rounded to; finite ones stay finite.
__device__ inline uint32_t level_of(uint32_t magnitude, uint32_t noise) {
  const uint32_t rounded = (magnitude + (noise >> (32 - kLevelShift))) >> kLevelShift;
  const uint32_t down = magnitude >> kLevelShift;
  const uint32_t most = down > kHighestFinite ? down : kHighestFinite;
  return rounded < most ? rounded : most;
}

/// Blocks of 8-bit codes under an fp32 scale: of the first moment with a sign, of the second without.
template <bool kSigned>
struct EightBitState {
  static constexpr bool kNoisy = true;
  static constexpr uint32_t kCodes = kSigned ? 127 : 255;  // but 0
  uint8_t* codes;
  float* scales;

  static EightBitState of(const StateMemory& memory, int64_t begin) {
    return {elements_from<uint8_t>(memory.numbers, begin),
            elements_from<float>(memory.extra, begin / kStateBlock)};
  }
  bool fits(int64_t n) const { return fits_packs<kQuad>(codes, n); }

  template <bool kVector>
  __device__ void read_into(Values& values, const Place& place) const {
    const uint32_t lowest = lowest_of(__float_as_uint(scales[place.block]) >> kLevelShift);
    if (place.lane == 0) count_read(sizeof(float));
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const auto pack = read_quad<kVector>(codes, place, q);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const uint32_t code = pack.values[i] & kCodes;
        const uint32_t sign = kSigned ? (static_cast<uint32_t>(pack.values[i]) >> 7) << 31 : 0U;
        values[q * kQuad + i] = __uint_as_float(code == 0 ? 0U : sign | ((lowest + code - 1) << kLevelShift));
      }
    }
  }
  template <bool kVector>
  __device__ void write_from(const Values& values, const Words& noise, const Place& place) const {
    Words levels;
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      levels[i] = level_of(__float_as_uint(values[i]) & 0x7fffffffU, noise[i]);
      top = levels[i] > top ? levels[i] : top;
    }
    top = reduce_warp<Max>(top);
    const uint32_t lowest = lowest_of(top);
    uint32_t any = 0;  // of nothing but zeros: the scale is 0 too
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      Pack<uint8_t, kQuad> pack;
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        const int own = q * kQuad + i;
        const uint32_t code = code_of(values[own], noise[own], levels[own], lowest);
        pack.values[i] = static_cast<uint8_t>(code);
        any |= code;
      }
      write_quad<kVector>(codes, pack, place, q);
    }
    // Where there is a level above the lowest of all, there is a code.
    if (top == 0) any = reduce_warp<Max>(any);
    if (place.lane == 0) {
      const uint32_t highest = top < lowest ? lowest : top;
      scales[place.block] = __uint_as_float(top == 0 && any == 0 ? 0U : highest << kLevelShift);
      count_write(sizeof(float));
    }
  }

 private:
  /// The level of code 1.
  __device__ static uint32_t lowest_of(uint32_t top) {
    return top > kCodes ? top - (kCodes - 1) : 1;
  }

  __device__ static uint32_t code_of(float value, uint32_t noise, uint32_t level, uint32_t lowest) {
    const uint32_t above = level - lowest + 1, bits = __float_as_uint(value);
    if constexpr (kSigned) {
      // 24 bits, which fp32 has exactly.
      const float threshold =
          static_cast<float>(noise >> 8) * 0x1p-24F * __uint_as_float(lowest << kLevelShift);
      const uint32_t below = __uint_as_float(bits & 0x7fffffffU) > threshold ? 1U : 0U;
      const uint32_t code = level < lowest ? below : above;
      return code == 0 ? 0U : (bits >> 31) << 7 | code;
    } else {
      return value == 0.0F ? 0U : level < lowest ? 1U : above;
    }
  }
};

}  // namespace satune::cuda
