#include "trainer/state_tensors.h"

#include <ATen/ATen.h>

#include "trainer/state_kernels.h"

namespace satune {
namespace {

constexpr int64_t kInfinityBits = 0x7f800000;
constexpr int64_t kMagnitude = 0x7fffffff;
constexpr int kLevelBits = 20;  // below a level

at::Tensor bits_of(const at::Tensor& values) {
  return values.contiguous().view(at::kInt);
}
at::Tensor values_of(const at::Tensor& bits) {
  return bits.to(at::kInt).view(at::kFloat);
}
at::Tensor shifted_right(const at::Tensor& bits, int64_t count) {
  return at::bitwise_right_shift(bits, count);
}
at::Tensor shifted_left(const at::Tensor& bits, int64_t count) {
  return at::bitwise_left_shift(bits, count);
}
/// The upper half of a word, without sign.
at::Tensor upper_half(const at::Tensor& bits) {
  return shifted_right(bits, 16).bitwise_and_(0xffff);
}
at::Tensor is_nan_bits(const at::Tensor& bits) {
  return bits.bitwise_and(kMagnitude).gt(kInfinityBits);
}
at::Tensor bit_places(const at::Tensor& like) {
  return at::arange(8, like.options().dtype(at::kInt));
}

void split_tensor(const StateSlices& slices, const at::Tensor& masters) {
  const at::Tensor bits = bits_of(masters), nan = is_nan_bits(bits), upper = upper_half(bits);
  const at::Tensor nearest = upper_half(bits + upper.bitwise_and(1).add_(0x7fff));
  const at::Tensor weights = at::where(nan, upper.bitwise_or(0x0040), nearest);
  const at::Tensor remainders = at::where(nan, 0, bits - shifted_left(weights, 16));
  slices.weights.view(at::kShort).copy_(weights);
  slices.numbers.copy_(remainders);
  const at::Tensor ties = remainders.eq(0x8000).to(at::kInt).view({-1, 8});
  slices.extra.copy_(at::bitwise_left_shift(ties, bit_places(ties)).sum(1));
}

at::Tensor join_tensor(const StateSlices& slices) {
  const at::Tensor packed = slices.extra.to(at::kInt).unsqueeze(1);
  const at::Tensor ties = at::bitwise_right_shift(packed, bit_places(packed)).bitwise_and_(1).flatten();
  const at::Tensor weights = slices.weights.view(at::kShort).to(at::kInt);
  return values_of(shifted_left(weights, 16) + slices.numbers.to(at::kInt) + shifted_left(ties, 16));
}

/// [blocks, kStateBlock], zeros at the end.
at::Tensor by_block(const at::Tensor& values) {
  const int64_t missing = (kStateBlock - values.numel() % kStateBlock) % kStateBlock;
  return (missing == 0 ? values : at::constant_pad_nd(values, {0, missing})).view({-1, kStateBlock});
}

/// Of each block's code 1.
at::Tensor lowest_levels(const at::Tensor& tops, int64_t codes) {
  return (tops - (codes - 1)).clamp_min_(1);
}

at::Tensor levels_of_tensor(const at::Tensor& magnitudes) {
  const at::Tensor down = shifted_right(magnitudes, kLevelBits);
  const at::Tensor rounded = shifted_right(magnitudes + (int64_t{1} << (kLevelBits - 1)), kLevelBits);
  return at::minimum(rounded, down.clamp_min((kInfinityBits >> kLevelBits) - 1));
}

void encode_blocks(StateForm form, const StateSlices& slices, const at::Tensor& values) {
  const bool first = form == StateForm::kFirst8Bit;
  const int64_t n = values.numel();
  const at::Tensor blocks = by_block(values.contiguous()), bits = bits_of(blocks);
  const at::Tensor magnitudes = bits.bitwise_and(kMagnitude);
  const at::Tensor levels = levels_of_tensor(magnitudes);
  const at::Tensor tops = levels.amax(1, /*keepdim=*/true).clamp_min_(1);
  const at::Tensor lowest = lowest_levels(tops, first ? 127 : 255);
  const at::Tensor above = levels - lowest + 1;
  at::Tensor codes, empty;
  if (first) {
    const at::Tensor step = values_of(shifted_left(lowest, kLevelBits));
    const at::Tensor below = values_of(magnitudes).gt(step.mul(0.5)).to(at::kInt);
    codes = at::where(levels.lt(lowest), below, above);
    empty = codes.eq(0).all(1, /*keepdim=*/true);
    codes = at::where(codes.eq(0), 0, codes + bits.lt(0).to(at::kInt) * 128);
  } else {
    codes = at::where(magnitudes.eq(0), 0, above.clamp_min(1));
    empty = magnitudes.eq(0).all(1, /*keepdim=*/true);
  }
  slices.numbers.copy_(codes.flatten().narrow(0, 0, n));
  slices.extra.copy_(values_of(at::where(empty, 0, shifted_left(tops, kLevelBits))).flatten());
}

at::Tensor decode_blocks(StateForm form, const StateSlices& slices) {
  const bool first = form == StateForm::kFirst8Bit;
  const at::Tensor all = by_block(slices.numbers).to(at::kInt);
  const at::Tensor codes = first ? all.bitwise_and(127) : all;
  const at::Tensor tops = shifted_right(bits_of(slices.extra), kLevelBits).unsqueeze(1);
  const at::Tensor levels = lowest_levels(tops, first ? 127 : 255) + codes - 1;
  const at::Tensor values = values_of(at::where(codes.eq(0), 0, shifted_left(levels, kLevelBits)));
  const at::Tensor is_signed = first ? at::where(all.gt(127), -values, values) : values;
  return is_signed.flatten().narrow(0, 0, slices.numbers.numel());
}

}  // namespace

at::Tensor decode_tensor(StateForm form, const StateSlices& slices) {
  if (form == StateForm::kSplit) return join_tensor(slices);
  if (form == StateForm::kBf16) return slices.numbers.to(at::kFloat);
  return decode_blocks(form, slices);
}

void encode_tensor(StateForm form, const StateSlices& slices, const at::Tensor& values) {
  if (form == StateForm::kSplit) return split_tensor(slices, values);
  if (form == StateForm::kBf16) {
    slices.numbers.copy_(values);
    return;
  }
  encode_blocks(form, slices, values);
}

}  // namespace satune
