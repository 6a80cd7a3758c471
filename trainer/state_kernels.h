// The number formats of the optimizer's state on the CPU: plain arrays, one thread, no LibTorch. Bit
// arithmetic throughout, so that every device and instruction set gives the same bits.
#pragma once

#include <cstdint>

#include "trainer/state_form.h"

namespace satune {

// --- An fp32 master as a bf16 weight and what is missing ---
//
// The weight is the master rounded to nearest even (round_to_bf16), the difference of their bit patterns
// lies in [-2^15, 2^15]: 2^16 + 1 values, for an even weight may be a tie on either side. So 16 bits are one
// state short, and a bit tells the tie that was rounded down. Exact for every value but NaN, which stays NaN.

/// weights[i], remainders[i] and bit i % 8 of ties[i / 8] from masters[i]; n a multiple of 8.
void split_masters(const float* masters, uint16_t* weights, uint16_t* remainders, uint8_t* ties, int64_t n);
void join_masters(const uint16_t* weights, const uint16_t* remainders, const uint8_t* ties, float* masters,
                  int64_t n);

// --- bf16 ---

/// Rounded up with the probability that makes the mean exact, by the upper 16 bits of noise[i] (Gupta et al.,
/// arXiv 1502.02551). What bf16 has stays as it is, finite values stay finite.
void round_to_bf16_stochastically(const float* from, const uint32_t* noise, uint16_t* to, int64_t n);
void widen_bf16(const uint16_t* from, float* to, int64_t n);

// --- 8 bits: blocks with a scale of their own (Dettmers et al., arXiv 2110.02861) ---
//
// A code counts levels of an fp32 number with 3 mantissa bits, eight to an octave, down from the largest of
// its block, which is the scale:
//
//   first moment   sign and 7 bits: 127 levels (down to 2^-15.75 of the scale), and 0
//   second moment  8 bits: 255 levels (down to 2^-31.75), and 0
//
// so that the root of the second reaches as far down as the first. Values are rounded stochastically to a
// neighbouring level: decays of 0.1 % a step would never move a moment that is rounded to nearest. Of the
// first moment what lies below the lowest level becomes that or 0, stochastically too; the second moment is
// raised to the lowest level, and is 0 only where it was 0: a denominator may come out too large there, never
// much too small. A block that came out of decoding gives the same codes again, whatever the noise.

/// One block of n <= kStateBlock elements. `noise`: a word an element; nullptr rounds to nearest.
void encode_first_moments(const float* from, const uint32_t* noise, uint8_t* codes, float* scale, int64_t n);
void decode_first_moments(const uint8_t* codes, float scale, float* to, int64_t n);
void encode_second_moments(const float* from, const uint32_t* noise, uint8_t* codes, float* scale, int64_t n);
void decode_second_moments(const uint8_t* codes, float scale, float* to, int64_t n);

}  // namespace satune
