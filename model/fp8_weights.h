// The weights of layer projections in 8 bits, for the passes of a training step.
#pragma once

#include <cstddef>
#include <vector>

#include "model/ops/fp8.h"

namespace satune {

class Fp8Weights {
 public:
  /// `keep`: each is made once between changed() and changed(), both layouts, 2 bytes a weight. Otherwise
  /// anew for every product, the layout it wants, to the same bits: for weights that are gathered and given
  /// back.
  Fp8Weights(size_t slots, bool keep) : keep_(keep), kept_(slots) {}

  /// `slot`: one number for each matrix.
  Fp8Matrix get(size_t slot, const at::Tensor& weight_OI, Fp8Layout layout) {
    if (!keep_) return to_fp8(weight_OI, Fp8Format::kE4M3, layout);
    Fp8Matrix& kept = kept_[slot];
    if (!kept.scale.defined()) kept = to_fp8(weight_OI, Fp8Format::kE4M3, Fp8Layout::kBoth);
    return kept;
  }

  /// The weights are others now.
  void changed() {
    for (Fp8Matrix& kept : kept_) kept = {};
  }

 private:
  bool keep_;
  std::vector<Fp8Matrix> kept_;
};

}  // namespace satune
