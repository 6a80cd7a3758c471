#include "trainer/shard.h"

#include <algorithm>

namespace satune {

ElementRange shard_range(int64_t numel, const World& world) {
  const int64_t blocks = (numel + kShardBlock - 1) / kShardBlock;
  const int64_t share = (blocks + world.size - 1) / world.size * kShardBlock;
  return {std::min(numel, world.rank * share), std::min(numel, (world.rank + 1) * share)};
}

std::vector<ShardPiece> shard_pieces(const ParameterBuffers& buffers, int segment, const World& world) {
  const ElementRange share = shard_range(buffers.flat(segment).numel(), world);
  const auto tensors = buffers.table().tensors();
  std::vector<ShardPiece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].segment != segment || !buffers.selected(i)) continue;
    const int64_t begin = std::max(share.begin, buffers.offset(i));
    const int64_t end = std::min(share.end, buffers.offset(i) + tensors[i].numel());
    if (begin >= end) continue;
    pieces.push_back({i, segment, {begin - buffers.offset(i), end - buffers.offset(i)}, begin - share.begin});
  }
  return pieces;
}

}  // namespace satune
