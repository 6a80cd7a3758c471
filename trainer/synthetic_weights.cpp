#include "trainer/synthetic_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "data/files/hash.h"
#include "trainer/shard.h"

namespace satune {
namespace {

/// A prime: no row of a matrix is another one's copy.
constexpr int64_t kBlock = 1000003;

/// Deviates of seed 0 (Box and Muller 1958), of unit deviation.
at::Tensor normal_block() {
  constexpr double kUnit = 0x1.0p-53;
  const at::Tensor block = at::empty({kBlock}, at::kFloat);
  auto* values = block.mutable_data_ptr<float>();
  uint64_t counter = 0;
  const auto uniform = [&] {
    return (static_cast<double>(mix_bits(counter += kGoldenGamma) >> 11) + 0.5) * kUnit;
  };
  for (int64_t i = 0; i < kBlock; ++i) {
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    values[i] = static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * uniform()));
  }
  return block;
}

/// Writes flat tensors one after another.
class Filler {
 public:
  Filler(double deviation, const at::Tensor& like)
      : block_((normal_block() * deviation).to(like.device(), like.scalar_type())) {}

  void fill(const at::Tensor& flat, bool norm) {
    if (norm) {
      flat.fill_(1.0);
      return;
    }
    for (int64_t done = 0; done < flat.numel();) {
      const int64_t count = std::min(flat.numel() - done, kBlock - next_);
      flat.narrow(0, done, count).copy_(block_.narrow(0, next_, count));
      done += count;
      next_ = (next_ + count) % kBlock;
    }
  }

 private:
  at::Tensor block_;
  int64_t next_ = 0;
};

bool is_norm(const TensorInfo& tensor) {
  return tensor.shape.size() == 1;
}

}  // namespace

void fill_synthetic(Weights& weights, double deviation) {
  const std::span<const TensorInfo> tensors = weights.table.tensors();
  Filler filler(deviation, weights.tensor(size_t{0}));
  for (size_t i = 0; i < tensors.size(); ++i) filler.fill(weights.tensor(i).view({-1}), is_norm(tensors[i]));
}

void fill_synthetic(const Llama& model, const Sharding& sharding, double deviation) {
  const ParameterBuffers& trained = model.weights().trained;
  const std::span<const TensorInfo> tensors = model.table().tensors();
  const std::vector<at::Tensor> shards = sharding.weight_shards();
  Filler filler(deviation, shards.front());
  const World owner = sharding.stage() == 0 ? World{} : sharding.world();
  for (int segment = 0; segment < trained.num_segments(); ++segment) {
    for (const ShardPiece& piece : shard_pieces(trained, segment, owner))
      filler.fill(shards[segment].narrow(0, piece.shard_offset, piece.elements.size()),
                  is_norm(tensors[piece.tensor]));
  }
  for (const Sharding::FrozenPiece& piece : sharding.frozen_pieces())
    filler.fill(piece.values, is_norm(tensors[piece.tensor]));
}

}  // namespace satune
