// The dynamic loss scale of fp16 runs (Micikevicius et al., arXiv 1710.03740), with the constants of
// torch.amp.GradScaler: fp16 gradients are those of loss * scale, so that small ones do not vanish.
#pragma once

#include <algorithm>
#include <cstdint>

#include "trainer/settings.h"

namespace satune {

struct LossScale {
  double value = 1;        ///< stays 1 in fp32 and bf16 runs
  int64_t good_steps = 0;  ///< since the last change

  static LossScale initial(Precision precision) { return {precision == Precision::kFp16 ? 65536.0 : 1.0, 0}; }

  /// After an update: doubled once 2000 in a row went well.
  void succeed(Precision precision) {
    if (precision != Precision::kFp16 || ++good_steps < 2000) return;
    value *= 2;
    good_steps = 0;
  }
  /// After gradients that were not finite although the loss was. False when there is no scale left to halve:
  /// then it is no overflow of the scale.
  bool back_off(Precision precision) {
    if (precision != Precision::kFp16 || value <= 1) return false;
    value = std::max(1.0, value / 2);
    good_steps = 0;
    return true;
  }
};

}  // namespace satune
