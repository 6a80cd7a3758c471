#include "trainer/adamw_tiles.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace satune {
namespace {

constexpr int64_t kTilesOfTask = 16;

/// The state of one tile in fp32: where it lies, or decoded.
class Tile {
 public:
  Tile(StateArrays& state, int64_t begin, int64_t n) : begin_(begin), n_(n) {
    const auto arrays = state.all();
    for (size_t i = 0; i < arrays.size(); ++i) {
      if (arrays[i]->form() == StateForm::kFp32) {
        values_[i] = arrays[i]->numbers().mutable_data_ptr<float>() + begin;
      } else {
        arrays[i]->decode(begin, n, buffers_[i]);
        values_[i] = buffers_[i];
      }
    }
  }

  /// `gradient`: of the share's elements from `first` on.
  void update(const at::Tensor& gradient, int64_t first, const StatePiece& piece, const StateUpdate& update) {
    const auto [from, to] = overlap(piece);
    const int64_t at = from - begin_, n = to - from, place = from - first;
    const AdamWCoefficients& c = piece.decay ? update.decayed : update.undecayed;
    float *p = values_[0] + at, *m = values_[1] + at, *v = values_[2] + at;
    if (gradient.scalar_type() == at::kBFloat16) {
      adamw_update_bf16(p, m, v, static_cast<const uint16_t*>(gradient.const_data_ptr()) + place, n, c);
    } else {
      adamw_update_f32(p, m, v, gradient.const_data_ptr<float>() + place, n, c);
    }
  }

  void write(StateArrays& state, std::span<const StatePiece> pieces, const StateUpdate& update) {
    const auto arrays = state.all();
    for (size_t i = 0; i < arrays.size(); ++i) {
      if (arrays[i]->form() == StateForm::kFp32) continue;
      if (arrays[i]->rounds_stochastically()) {
        std::fill_n(noise_, n_, 0U);
        for (const StatePiece& piece : pieces) {
          const auto [from, to] = overlap(piece);
          rounding_noise(noise_key(update, piece, i), piece.where.elements.begin + from - piece.begin(),
                         to - from, noise_ + (from - begin_));
        }
      }
      arrays[i]->encode(begin_, n_, buffers_[i], noise_);
    }
  }

 private:
  ElementRange overlap(const StatePiece& piece) const {
    return {std::max(begin_, piece.begin()), std::min(begin_ + n_, piece.end())};
  }

  int64_t begin_, n_;
  float* values_[3];
  float buffers_[3][kStateTile];
  uint32_t noise_[kStateTile];
};

}  // namespace

NoiseKey noise_key(const StateUpdate& update, const StatePiece& piece, size_t array) {
  return {update.seed, static_cast<uint32_t>(update.update), static_cast<uint32_t>(piece.where.tensor),
          static_cast<uint32_t>(array)};
}

void update_tiles(StateArrays& state, const at::Tensor& gradient, std::span<const StatePiece> pieces,
                  const StateUpdate& update, int64_t first) {
  const int64_t numel = gradient.numel(), tiles = (numel + kStateTile - 1) / kStateTile;
  at::parallel_for(0, tiles, kTilesOfTask, [&](int64_t first_tile, int64_t last_tile) {
    // The first piece that ends behind the tile's beginning.
    auto piece = std::partition_point(pieces.begin(), pieces.end(), [&](const StatePiece& p) {
      return p.end() <= first + first_tile * kStateTile;
    });
    for (int64_t i = first_tile; i < last_tile; ++i) {
      const int64_t begin = first + i * kStateTile, end = std::min(first + numel, begin + kStateTile);
      while (piece != pieces.end() && piece->end() <= begin) ++piece;
      auto behind = piece;
      while (behind != pieces.end() && behind->begin() < end) ++behind;
      if (behind == piece) continue;
      const std::span<const StatePiece> touched(piece, behind);
      Tile tile(state, begin, end - begin);
      for (const StatePiece& p : touched) tile.update(gradient, first, p, update);
      tile.write(state, touched, update);
    }
  });
}

}  // namespace satune
