// optimizer_offload: gradients of a card on their way to the host and weights on their way back, in pieces
// through pinned memory. While one piece is updated the next arrives and the one before leaves.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/copy_queue.h"

namespace satune {

/// Elements of a piece, where nobody says otherwise: a few milliseconds of a link or of a CPU's update.
inline constexpr int64_t kHostPiece = int64_t{1} << 24;

/// Bytes of each pinned buffer, for pieces of `elements` elements and weights of `weight_bytes` each.
std::vector<int64_t> host_staging_buffers(int64_t elements, int64_t weight_bytes);

class HostStaging {
 public:
  /// Of one card, both 1-D, contiguous and of equally many elements.
  struct Piece {
    at::Tensor gradient;  ///< at most 4 bytes an element
    at::Tensor weights;
  };
  /// Makes weights on the host out of a gradient there; both pinned, for the time of the call.
  using Update = std::function<void(size_t piece, const at::Tensor& gradient, const at::Tensor& weights)>;

  /// For pieces of at most `elements` elements, and weights of this type. Takes its pinned memory at once.
  HostStaging(at::Device card, at::ScalarType weight, int64_t elements);

  /// Calls `update` for each piece, in order. Gradients are those that are there when the work queued on the
  /// card before is done; work queued behind sees the weights, also where `update` throws (of the pieces
  /// before). The host waits for each gradient, and for the memory of the weights that left two pieces
  /// before.
  void run(std::span<const Piece> pieces, const Update& update);

 private:
  std::unique_ptr<CopyQueue> down_, up_;
  std::array<at::Tensor, 2> gradients_, weights_;  ///< pinned; gradients as bytes
  std::array<std::optional<size_t>, 2> left_;      ///< copies that last read weights_
};

}  // namespace satune
