// Who wants to know what a step spends its time on is told as it happens: parts begin and end, one inside the
// other, on one thread. Passed by pointer through SegmentHooks; nullptr = nobody, which costs a comparison.
#pragma once

#include <cstddef>
#include <cstdint>

namespace satune {

class StepTrace {
 public:
  virtual ~StepTrace() = default;

  /// Begins a part inside those that are open. `name`: a string literal; a "{}" in it stands for `number`
  /// (a layer, a step). Returns what end() takes.
  virtual size_t begin(const char* name, int64_t number = -1) = 0;
  /// Ends that part, and what was left open inside it.
  virtual void end(size_t part) = 0;

  /// Something is on its way beside the parts (a collective), until arrive() with the number that this
  /// returns.
  virtual size_t depart(const char* name, int64_t number = -1) = 0;
  virtual void arrive(size_t journey) = 0;
};

/// A part for as long as the scope lasts.
class TracedPart {
 public:
  TracedPart(StepTrace* trace, const char* name, int64_t number = -1) : trace_(trace) {
    if (trace_ != nullptr) part_ = trace_->begin(name, number);
  }
  ~TracedPart() {
    if (trace_ != nullptr) trace_->end(part_);
  }
  TracedPart(const TracedPart&) = delete;
  TracedPart& operator=(const TracedPart&) = delete;

 private:
  StepTrace* trace_;
  size_t part_ = 0;
};

/// Runs `work` as a part.
template <typename Work>
decltype(auto) traced(StepTrace* trace, const char* name, const Work& work) {
  const TracedPart part(trace, name);
  return work();
}

/// Names of the parts that the model tells. In a layer's forward all but the last; in its backward those that
/// have one, and kAgain around what the activation policy computes a second time.
namespace part {
inline constexpr const char* kNorm = "norm";
inline constexpr const char* kQkv = "qkv projection";  ///< v alone in a shared layer
inline constexpr const char* kRope = "rope";
inline constexpr const char* kAttention = "attention";
inline constexpr const char* kOutput = "output projection";  ///< with the residual, forward
inline constexpr const char* kGateUp = "gate and up projection";
inline constexpr const char* kSwiglu = "swiglu";
inline constexpr const char* kDown = "down projection";  ///< with the residual, forward
inline constexpr const char* kSpan = "sum over span";    ///< of dQ and dK, backward
inline constexpr const char* kAgain = "forward again";
inline constexpr const char* kLoss = "head and loss";  ///< its forward and backward are one
}  // namespace part

}  // namespace satune
