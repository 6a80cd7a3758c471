// How a memory mode keeps one number of AdamW for each element - master, first or second moment. What lies
// behind each form is in trainer/state_kernels.h.
#pragma once

#include <cstdint>

namespace satune {

enum class StateForm {
  kFp32,
  kSplit,       ///< bf16 weights, 16-bit remainders, a bit for ties: the fp32 numbers exactly
  kBf16,        ///< rounded stochastically
  kFirst8Bit,   ///< blocks of kStateBlock, rounded stochastically
  kSecond8Bit,  ///< the same for what is never negative
};

inline constexpr int64_t kStateBlock = 256;  ///< elements that share a scale
inline constexpr int64_t kStateTile = 1024;  ///< elements that are encoded or left alone together
inline constexpr int64_t kTieBits = 8;       ///< of kSplit, in a byte

constexpr int64_t state_blocks(int64_t elements) {
  return (elements + kStateBlock - 1) / kStateBlock;
}

/// A share's numbers in memory.
struct StateMemory {
  StateForm form = StateForm::kFp32;
  void* numbers = nullptr;  ///< fp32 | bits of 16 | bf16 | codes
  void* extra = nullptr;    ///< ties of kSplit, eight a byte from bit 0 on | an fp32 scale of each block
  void* weights = nullptr;  ///< bf16, of kSplit
};

/// Bytes of `elements` numbers, without the weights of kSplit.
constexpr int64_t state_bytes(StateForm form, int64_t elements) {
  switch (form) {
    case StateForm::kFp32:
      return elements * 4;
    case StateForm::kSplit:
      return elements * 2 + elements / kTieBits;
    case StateForm::kBf16:
      return elements * 2;
    case StateForm::kFirst8Bit:
    case StateForm::kSecond8Bit:
      break;
  }
  return elements + state_blocks(elements) * 4;
}

}  // namespace satune
