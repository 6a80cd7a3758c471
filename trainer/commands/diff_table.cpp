#include "trainer/commands/diff_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "data/files/error.h"
#include "evaluation/backward_walk.h"

namespace satune {
namespace {

constexpr int kForwardWidth = 24, kBackwardWidth = 58;

std::string tolerance_text(const Tolerance& tolerance) {
  if (tolerance.relative_l2) return fmt::format("relative L2 at most {}", *tolerance.relative_l2);
  return fmt::format("rtol {}, atol {}", tolerance.relative, tolerance.absolute);
}

std::string shape_text(at::IntArrayRef shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

bool is_backward(std::string_view name) {
  return name == "loss" || name.starts_with(kGradientPrefix);
}

DiffTable::DiffTable(const NamedTensors& reference, DiffSides sides, Tolerance forward, Tolerance backward)
    : reference_(reference),
      sides_(std::move(sides)),
      forward_tolerance_(forward),
      backward_tolerance_(backward) {}

void DiffTable::print_head(bool gradient) {
  fmt::print("{:<{}} {:>18} {:>12} {:>12}\n", "tensor", gradient ? kBackwardWidth : kForwardWidth, "shape",
             "max abs", "relative L2");
}

void DiffTable::see(std::string_view name, const at::Tensor& value) {
  seen_.emplace(name);
  const auto found = reference_.find(name);
  if (found == reference_.end()) {
    missing_.emplace_back(name);
    return;
  }
  if (value.sizes() != found->second.sizes())
    throw bad_input(fmt::format("{}: tensor {}", sides_.reference_name, name),
                    "shape " + shape_text(found->second.sizes()), shape_text(value.sizes()));
  const bool backward = is_backward(name);
  Part& part = backward ? backward_ : forward_;
  if (part.compared++ == 0) print_head(backward);
  const Tolerance& tolerance = backward ? backward_tolerance_ : forward_tolerance_;
  const TensorDifference difference = compare_tensors(value, found->second, tolerance);
  fmt::print("{:<{}} {:>18} {:>12.3e} {:>12.3e}{}\n", name, backward ? kBackwardWidth : kForwardWidth,
             shape_text(value.sizes()), difference.max_absolute, difference.relative_l2,
             difference.first ? "  parts" : "");
  if (difference.first && part.first.empty()) part.first = describe(name, difference, tolerance);
}

std::string DiffTable::describe(std::string_view name, const TensorDifference& difference,
                                const Tolerance& tolerance) const {
  const DifferingElement& element = *difference.first;
  const std::string values =
      fmt::format("{}{}: {} {:.9g}, {} {:.9g}", name, shape_text(element.index), sides_.value_label,
                  element.value, sides_.reference_label, element.reference);
  if (tolerance.relative_l2)
    return fmt::format("{} (the largest difference); relative L2 {:.3g}, at most {}", values,
                       difference.relative_l2, *tolerance.relative_l2);
  return fmt::format("{}; {} of {} elements beyond {}", values, difference.beyond_tolerance,
                     difference.elements, tolerance_text(tolerance));
}

int DiffTable::finish() const {
  std::vector<std::string> unseen;
  for (const auto& [name, tensor] : reference_)
    if (!seen_.contains(name)) unseen.push_back(name);
  if (sides_.name_missing && !missing_.empty())
    fmt::print("not compared, only {} has: {}\n", sides_.value_label, fmt::join(missing_, ", "));
  if (!unseen.empty())
    fmt::print("not compared, only {} has: {}\n", sides_.reference_label, fmt::join(unseen, ", "));
  if (forward_.compared + backward_.compared == 0)
    throw bad_input(sides_.reference_name, "no tensor of this model", "embed, layers.0.q, ..., logits");
  std::vector<std::string> agreed;
  if (forward_.compared > 0 && forward_.first.empty())
    agreed.push_back(
        fmt::format("{} tensors agree ({})", forward_.compared, tolerance_text(forward_tolerance_)));
  if (backward_.compared > 0 && backward_.first.empty())
    agreed.push_back(fmt::format("{} tensors of the backward pass agree ({})", backward_.compared,
                                 tolerance_text(backward_tolerance_)));
  if (!agreed.empty()) fmt::print("{}\n", fmt::join(agreed, "; "));
  if (!backward_.first.empty()) fmt::print("first of the backward pass to part: {}\n", backward_.first);
  if (!forward_.first.empty()) fmt::print("first to part: {}\n", forward_.first);
  return forward_.first.empty() && backward_.first.empty() ? kExitOk : kExitFailure;
}

}  // namespace satune
