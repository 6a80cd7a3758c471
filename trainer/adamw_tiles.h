// AdamW over state in any form: tiles of it are decoded, updated in fp32 by the same kernels as fp32 state,
// and encoded again while they are in the cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <span>

#include "trainer/adamw_kernels.h"
#include "trainer/rounding_noise.h"
#include "trainer/shard.h"
#include "trainer/state_array.h"

namespace satune {

/// Master, first and second moment of a share.
struct StateArrays {
  StateArray master, exp_avg, exp_avg_sq;

  std::array<StateArray*, 3> all() { return {&master, &exp_avg, &exp_avg_sq}; }
};

/// The part of one tensor in a share.
struct StatePiece {
  ShardPiece where;
  bool decay = false;

  int64_t begin() const { return where.shard_offset; }
  int64_t end() const { return where.shard_offset + where.elements.size(); }
};

/// Words of noise for elements [begin, end) of a share, for array 0 (master), 1 or 2.
NoiseKey noise_key(const StateUpdate& update, const StatePiece& piece, size_t array);

/// On the CPU. `gradient`: fp32 or bf16, of the share's elements from `first` on, a multiple of kStateTile;
/// no others are updated. `pieces` ascending; elements in none of them (padding) are left alone. The result
/// depends on neither threads nor the share's borders.
void update_tiles(StateArrays& state, const at::Tensor& gradient, std::span<const StatePiece> pieces,
                  const StateUpdate& update, int64_t first = 0);

}  // namespace satune
