// The weights of layer projections in 8 bits, for the passes of a training step.
#pragma once

#include <cstddef>
#include <vector>

#include "model/ops/fp8.h"

namespace satune {

class Fp8Weights {
 public:
  /// `keep`: each is made once between changed() and changed(): by rows alone before slot
  /// `first_of_backward`, which no backward reads, then both layouts, 2 bytes a weight. Otherwise anew for
  /// every product, the layout it wants, to the same bits: for weights that are gathered and given back.
  Fp8Weights(size_t slots, size_t first_of_backward, bool keep)
      : first_of_backward_(first_of_backward), keep_(keep), kept_(slots) {}

  /// `slot`: one number for each matrix.
  Fp8Matrix get(size_t slot, const at::Tensor& weight_OI, bool trained, Fp8Layout layout) {
    if (!keep_) return to_fp8(weight_OI, Fp8Format::kE4M3, layout);
    Kept& kept = kept_[slot];
    if (!kept.matrix.scale.defined()) {
      const bool both = slot >= first_of_backward_;
      kept = {to_fp8(weight_OI, Fp8Format::kE4M3, both ? Fp8Layout::kBoth : Fp8Layout::kRows), trained};
    }
    return kept.matrix;
  }

  /// The trained weights are others now.
  void changed() {
    for (Kept& kept : kept_) {
      if (kept.trained) kept = {};
    }
  }

 private:
  struct Kept {
    Fp8Matrix matrix;
    bool trained = false;
  };
  size_t first_of_backward_;
  bool keep_;
  std::vector<Kept> kept_;
};

}  // namespace satune
