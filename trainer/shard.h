// Who owns which elements of the flat parameter buffers. One process is rank 0 of 1 and owns them all; the
// optimizer state and the snapshots are written for any share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/parameters.h"

namespace satune {

struct World {
  int64_t rank = 0, size = 1;
};

/// Elements [begin, end).
struct ElementRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

/// A rank's share of a segment's flat buffer of `numel` elements: equal parts cut at multiples of
/// kShardBlock, the last ones shorter or empty.
inline constexpr int64_t kShardBlock = 4096;
ElementRange shard_range(int64_t numel, const World& world);

/// The part of one tensor that lies in a rank's share.
struct ShardPiece {
  size_t tensor = 0;         ///< index in the table
  int segment = 0;           ///
  ElementRange elements;     ///< of the tensor
  int64_t shard_offset = 0;  ///< first element inside the rank's share of the segment
};

/// The pieces of one segment, ascending, empty ones left out. `buffers` gives selection and offsets.
std::vector<ShardPiece> shard_pieces(const ParameterBuffers& buffers, int segment, const World& world);

}  // namespace satune
