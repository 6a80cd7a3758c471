#include "evaluation/backward_walk.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

namespace satune {
namespace {

/// Where in its segment's backward a gradient is made.
size_t backward_rank(TensorRole role) {
  using enum TensorRole;
  constexpr std::array<TensorRole, 12> kOrder = {
      kHead,   kFinalNorm, kDown, kUp,    kGate,      kPostAttentionNorm,
      kOutput, kValue,     kKey,  kQuery, kInputNorm, kEmbedding};
  return static_cast<size_t>(std::find(kOrder.begin(), kOrder.end(), role) - kOrder.begin());
}

std::vector<size_t> backward_order(const TensorTable& table) {
  const std::span<const TensorInfo> tensors = table.tensors();
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(-tensors[a].segment, backward_rank(tensors[a].role)) <
           std::pair(-tensors[b].segment, backward_rank(tensors[b].role));
  });
  return order;
}

}  // namespace

void walk_backward(Llama& model, const DeviceBatch& batch, const Observer& observer) {
  TORCH_CHECK(batch.targets.count() > 0, "a batch without targets has no gradients");
  ParameterBuffers gradients = model.make_gradients(model.weights().type());
  const std::vector<Recording> recording(static_cast<size_t>(model.config().num_hidden_layers),
                                         Recording::kRecompute);
  SegmentHooks none;
  const double scale = 1.0 / static_cast<double>(batch.targets.count());
  const LossSums sums = model.forward_backward(batch, scale, gradients, false, recording, none);
  observer("loss", sums.loss * scale);
  for (const size_t i : backward_order(model.table())) {
    observer(std::string(kGradientPrefix) + model.table().tensors()[i].name, gradients.tensor(i));
  }
}

}  // namespace satune
