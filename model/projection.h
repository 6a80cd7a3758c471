// The linear maps of a layer: products with weights that read the same input, in the model's type or in 8
// bits.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/fp8_weights.h"
#include "model/ops/fp8.h"
#include "model/parameters.h"

namespace satune {

/// What a projection reads, and what its weights' gradients need of it later.
struct ProjectionInput {
  at::Tensor x_NI;          ///< in the model's type; undefined where 8 bits of it are enough
  Fp8Matrix x8;             ///< by columns, where it was kept so
  at::Tensor largest = {};  ///< to_fp8()'s, of x_NI
};

/// A projection made of tensors that read the same input (q,k,v; gate,up), or of one: one GEMM where they lie
/// side by side in one buffer, one each where some are frozen and live elsewhere.
class FusedProjection {
 public:
  FusedProjection() = default;
  /// Table indices of the tensors, in order. `first_slot`: of Fp8Weights, one for each GEMM from there on.
  FusedProjection(const Weights& weights, std::vector<size_t> tensors, size_t first_slot = 0);

  at::Tensor forward(const at::Tensor& x_NI) const;
  /// residual + forward(x), summed before the one rounding. Of a single GEMM.
  at::Tensor forward(const at::Tensor& x_NI, const at::Tensor& residual_NO) const;
  /// The matrices [outputs, inputs] whose outputs, one after another, are those of forward().
  std::vector<at::Tensor> weights() const;
  /// Gradient of the input; also the weights' gradients into `gradients`, after which the input is let go.
  /// `need_input` false skips the former.
  at::Tensor backward(const at::Tensor& d_y_NO, ProjectionInput& input, const ParameterBuffers& gradients,
                      bool accumulate, bool need_input) const;

  /// Whether all of its GEMMs can be of 8 bits.
  bool takes_fp8() const;
  /// The same passes in 8 bits. Forward quantises the input: `layout` says whether for its columns too, which
  /// backward makes of x_NI where there are none. `residual` may be undefined; it is added after rounding.
  at::Tensor forward8(ProjectionInput& input, Fp8Layout layout, const at::Tensor& residual_NO,
                      Fp8Weights& weights) const;
  at::Tensor backward8(const at::Tensor& d_y_NO, ProjectionInput& input, const ParameterBuffers& gradients,
                       bool accumulate, bool need_input, Fp8Weights& weights,
                       const at::Tensor& largest_d_y = {}) const;

 private:
  struct Block {
    at::Tensor weight_OI;         ///< view over one or several tensors
    std::vector<size_t> tensors;  ///< table indices it covers
    bool trained = true;
    size_t slot = 0;  ///< of Fp8Weights
  };
  /// With the columns of `y` that are each block's.
  template <typename F>
  void for_each_block(const at::Tensor& y_NO, F&& f) const {
    int64_t first = 0;
    for (const Block& block : blocks_) {
      const int64_t outputs = block.weight_OI.size(0);
      f(block, y_NO.narrow(1, first, outputs));
      first += outputs;
    }
  }

  std::vector<Block> blocks_;
};

/// Most GEMMs of a layer's projections: q, k, v; output; gate, up; down.
inline constexpr size_t kProjectionSlots = 7;

}  // namespace satune
