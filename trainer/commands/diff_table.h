// The table of `satune diff`: tensor by tensor, in the order in which they are computed.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/tensor_difference.h"

namespace satune {

/// One side of a comparison, by the names that Observer and walk_backward() give.
using NamedTensors = std::map<std::string, at::Tensor, std::less<>>;

struct DiffSides {
  std::string reference_name;                ///< names the reference in errors: its file or model
  std::string value_label, reference_label;  ///< "satune" and "reference" in what is printed
  bool name_missing = false;  ///< tensors that the reference lacks are told; else they are passed over
};

/// Prints a line for each tensor that both sides have as it comes, and keeps the first of the forward pass
/// and the first gradient that parts.
class DiffTable {
 public:
  /// `reference` must outlive it.
  DiffTable(const NamedTensors& reference, DiffSides sides, Tolerance forward, Tolerance backward);

  /// Throws BadInput when the reference's tensor has another shape.
  void see(std::string_view name, const at::Tensor& value);
  /// Prints what was not compared and the verdict. Returns the exit code: kExitOk where all agree, else
  /// kExitFailure. Throws BadInput where nothing was compared.
  int finish() const;

 private:
  struct Part {
    int64_t compared = 0;
    std::string first;  ///< what to say of the first that parts; "" = none
  };
  void print_head(bool gradient);
  std::string describe(std::string_view name, const TensorDifference& difference,
                       const Tolerance& tolerance) const;

  const NamedTensors& reference_;
  DiffSides sides_;
  Tolerance forward_tolerance_, backward_tolerance_;
  Part forward_, backward_;
  std::set<std::string, std::less<>> seen_;
  std::vector<std::string> missing_;  ///< of the reference
};

/// Whether the name is that of the loss or of a gradient: made by the backward pass.
bool is_backward(std::string_view name);

}  // namespace satune
