// optimizer_offload: gradients of a card on their way to the host and weights on their way back, in pieces
// through pinned memory. While one piece is updated the next arrives and the one before leaves.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <deque>
#include <memory>

#include "model/copy_queue.h"

namespace satune {

/// Elements of a piece, where nobody says otherwise: a few milliseconds of a link or of a CPU's update.
inline constexpr int64_t kHostPiece = int64_t{1} << 24;

class HostStaging {
 public:
  /// For pieces of at most `elements` elements of gradients and weights of these types. Pinned memory: two
  /// pieces of each.
  HostStaging(at::Device card, at::ScalarType gradient, at::ScalarType weight, int64_t elements);

  /// A gradient piece, 1-D on the card, sets out for the host, behind the work that is queued on the card. At
  /// most two are on their way or in use.
  void fetch(const at::Tensor& gradient);
  /// The oldest piece that was fetched and not taken: the host waits for it. Its memory is used again by the
  /// second fetch() from here.
  at::Tensor take();
  /// Pinned memory for `elements` weights. The host waits until what was sent from there before has left.
  at::Tensor place(int64_t elements);
  /// What place() gave goes to `weights`, 1-D on the card.
  void send(const at::Tensor& placed, const at::Tensor& weights);
  /// Work queued on the card from here on sees all that was sent.
  void finish();

 private:
  /// Pinned memory and the copy that last used it.
  struct Buffer {
    at::Tensor memory;
    size_t copy = 0;
    bool in_use = false;
  };

  std::unique_ptr<CopyQueue> down_, up_;
  std::array<Buffer, 2> gradients_, weights_;
  struct Fetched {
    size_t buffer;
    int64_t elements;
  };
  std::deque<Fetched> fetched_;
  size_t next_gradient_ = 0, next_weight_ = 0;
};

}  // namespace satune
