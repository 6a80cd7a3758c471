#include "trainer/state_array.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "model/ops/cuda_stream.h"
#include "trainer/adamw_kernels.h"
#include "trainer/state_kernels.h"

namespace satune {
namespace {

bool in_blocks(StateForm form) {
  return form == StateForm::kFirst8Bit || form == StateForm::kSecond8Bit;
}

at::ScalarType number_type(StateForm form) {
  switch (form) {
    case StateForm::kFp32:
      return at::kFloat;
    case StateForm::kSplit:
      return at::kShort;
    case StateForm::kBf16:
      return at::kBFloat16;
    case StateForm::kFirst8Bit:
    case StateForm::kSecond8Bit:
      break;
  }
  return at::kByte;
}

uint16_t* half_words(const at::Tensor& tensor) {
  return static_cast<uint16_t*>(tensor.mutable_data_ptr());
}

template <typename F>
void for_tiles(int64_t n, const F& f) {
  const int64_t tiles = (n + kStateTile - 1) / kStateTile;
  at::parallel_for(0, tiles, 16, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      f(tile * kStateTile, std::min(kStateTile, n - tile * kStateTile));
    }
  });
}

}  // namespace

StateArray::StateArray(StateForm form, int64_t elements, at::Device device) : form_(form) {
  const auto options = at::TensorOptions(device);
  numbers_ = at::zeros({elements}, options.dtype(number_type(form)));
  if (in_blocks(form)) extra_ = at::zeros({state_blocks(elements)}, options.dtype(at::kFloat));
  if (form == StateForm::kSplit) extra_ = at::zeros({elements / kTieBits}, options.dtype(at::kByte));
}

StateArray::StateArray(at::Tensor numbers)
    : form_(numbers.scalar_type() == at::kFloat ? StateForm::kFp32 : StateForm::kBf16),
      numbers_(std::move(numbers)) {
  TORCH_CHECK(numbers_.scalar_type() == number_type(form_), "state in ", numbers_.scalar_type());
}

StateArray StateArray::split(at::Tensor weights) {
  TORCH_CHECK(weights.scalar_type() == at::kBFloat16 && weights.numel() % kTieBits == 0);
  StateArray array(StateForm::kSplit, weights.numel(), weights.device());
  array.weights_ = std::move(weights);
  return array;
}

void StateArray::decode(int64_t begin, int64_t n, float* values) const {
  switch (form_) {
    case StateForm::kSplit:
      return join_masters(half_words(weights_) + begin, half_words(numbers_) + begin,
                          extra_.const_data_ptr<uint8_t>() + begin / kTieBits, values, n);
    case StateForm::kBf16:
      return widen_bf16(half_words(numbers_) + begin, values, n);
    case StateForm::kFp32:
      TORCH_CHECK(false, "fp32 is read in place");
    case StateForm::kFirst8Bit:
    case StateForm::kSecond8Bit:
      break;
  }
  const auto decode_block = form_ == StateForm::kFirst8Bit ? decode_first_moments : decode_second_moments;
  for (int64_t i = 0; i < n; i += kStateBlock) {
    decode_block(numbers_.const_data_ptr<uint8_t>() + begin + i,
                 extra_.const_data_ptr<float>()[(begin + i) / kStateBlock], values + i,
                 std::min(kStateBlock, n - i));
  }
}

void StateArray::encode(int64_t begin, int64_t n, const float* values, const uint32_t* noise) {
  switch (form_) {
    case StateForm::kSplit:
      return split_masters(values, half_words(weights_) + begin, half_words(numbers_) + begin,
                           extra_.mutable_data_ptr<uint8_t>() + begin / kTieBits, n);
    case StateForm::kBf16:
      return noise != nullptr ? round_to_bf16_stochastically(values, noise, half_words(numbers_) + begin, n)
                              : round_to_bf16(values, half_words(numbers_) + begin, n);
    case StateForm::kFp32:
      TORCH_CHECK(false, "fp32 is written in place");
    case StateForm::kFirst8Bit:
    case StateForm::kSecond8Bit:
      break;
  }
  const auto encode_block = form_ == StateForm::kFirst8Bit ? encode_first_moments : encode_second_moments;
  for (int64_t i = 0; i < n; i += kStateBlock) {
    encode_block(values + i, noise != nullptr ? noise + i : nullptr,
                 numbers_.mutable_data_ptr<uint8_t>() + begin + i,
                 extra_.mutable_data_ptr<float>() + (begin + i) / kStateBlock, std::min(kStateBlock, n - i));
  }
}

at::Tensor StateArray::values(int64_t begin, int64_t end) const {
  if (form_ == StateForm::kFp32) return numbers_.slice(0, begin, end);
  // From a border that every form has.
  const int64_t from = begin / kStateBlock * kStateBlock;
  const int64_t to = std::min(numel(), state_blocks(end) * kStateBlock);
  if (cuda::on_card(numbers_)) {
    return decode_tensor(form_, slices(from, to)).narrow(0, begin - from, end - begin);
  }
  const at::Tensor decoded = at::empty({to - from}, at::kFloat);
  float* values = decoded.mutable_data_ptr<float>();
  for_tiles(to - from, [&](int64_t at, int64_t count) { decode(from + at, count, values + at); });
  return decoded.narrow(0, begin - from, end - begin);
}

void StateArray::set(int64_t begin, const at::Tensor& values) {
  const int64_t n = values.numel();
  if (form_ == StateForm::kFp32) {
    numbers_.narrow(0, begin, n).copy_(values);
    return;
  }
  TORCH_CHECK(begin % kStateBlock == 0, "state written from within a block");
  if (cuda::on_card(numbers_)) return encode_tensor(form_, slices(begin, begin + n), values);
  const float* from = values.const_data_ptr<float>();
  for_tiles(n, [&](int64_t at, int64_t count) { encode(begin + at, count, from + at, nullptr); });
}

StateMemory StateArray::memory() const {
  const auto address = [](const at::Tensor& tensor) {
    TORCH_CHECK(!tensor.defined() || tensor.is_contiguous());
    return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
  };
  return {form_, address(numbers_), address(extra_), address(weights_)};
}

StateSlices StateArray::slices(int64_t begin, int64_t end) const {
  StateSlices slices{numbers_.slice(0, begin, end), {}, {}};
  if (form_ == StateForm::kSplit) {
    slices.extra = extra_.slice(0, begin / kTieBits, end / kTieBits);
    slices.weights = weights_.slice(0, begin, end);
  } else if (in_blocks(form_)) {
    slices.extra = extra_.slice(0, begin / kStateBlock, state_blocks(end));
  }
  return slices;
}

at::Tensor StateArray::stored(int64_t begin, int64_t end) const {
  return form_ == StateForm::kSplit ? values(begin, end) : numbers_.slice(0, begin, end);
}

at::Tensor StateArray::stored_scales(int64_t begin, int64_t end) const {
  return in_blocks(form_) ? extra_.slice(0, begin / kStateBlock, state_blocks(end)) : at::Tensor();
}

}  // namespace satune
