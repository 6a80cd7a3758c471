#include "trainer/host_staging.h"

#include <ATen/ATen.h>

namespace satune {
namespace {

constexpr int64_t kMostGradientBytes = 4;

void check_piece(const HostStaging::Piece& piece, int64_t most, at::ScalarType weight) {
  TORCH_CHECK(piece.gradient.dim() == 1 && piece.weights.dim() == 1 && piece.gradient.is_contiguous() &&
              piece.weights.is_contiguous() && piece.gradient.numel() == piece.weights.numel());
  TORCH_CHECK(piece.gradient.numel() <= most && piece.gradient.itemsize() <= kMostGradientBytes &&
              piece.weights.scalar_type() == weight);
}

}  // namespace

std::vector<int64_t> host_staging_buffers(int64_t elements, int64_t weight_bytes) {
  const int64_t gradient = elements * kMostGradientBytes, weights = elements * weight_bytes;
  return {gradient, gradient, weights, weights};
}

HostStaging::HostStaging(at::Device card, at::ScalarType weight, int64_t elements)
    : down_(make_copy_queue(card)), up_(make_copy_queue(card)) {
  for (at::Tensor& memory : gradients_)
    memory = at::empty({elements * kMostGradientBytes}, at::dtype(at::kByte).pinned_memory(true));
  for (at::Tensor& memory : weights_) memory = at::empty({elements}, at::dtype(weight).pinned_memory(true));
}

void HostStaging::run(std::span<const Piece> pieces, const Update& update) {
  for (const Piece& piece : pieces) check_piece(piece, weights_[0].numel(), weights_[0].scalar_type());
  std::array<size_t, 2> arrives{};
  const auto gradient_of = [&](size_t i) {
    const at::Tensor& there = pieces[i].gradient;
    return gradients_[i % 2].narrow(0, 0, there.numel() * there.itemsize()).view(there.scalar_type());
  };
  const auto fetch = [&](size_t i) {
    if (i < pieces.size()) arrives[i % 2] = down_->copy(gradient_of(i), pieces[i].gradient);
  };
  std::optional<size_t> last;  // of a queue's copies, behind which all others are
  try {
    fetch(0);
    for (size_t i = 0; i < pieces.size(); ++i) {
      fetch(i + 1);  // to where the piece before was, which is done with
      down_->finish(arrives[i % 2]);
      if (left_[i % 2]) up_->finish(*left_[i % 2]);
      const at::Tensor weights = weights_[i % 2].narrow(0, 0, pieces[i].weights.numel());
      update(i, gradient_of(i), weights);
      left_[i % 2] = last = up_->copy(pieces[i].weights, weights);
    }
  } catch (...) {
    if (last) up_->wait_for(*last);
    throw;
  }
  if (last) up_->wait_for(*last);
}

}  // namespace satune
