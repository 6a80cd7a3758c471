// What sharding.cpp sends and keeps, replayed over sizes alone: which segments are gathered before each pass,
// which are reduced after it, and how large the pools of buffers grow. Drives the memory and traffic plans
// for worlds that are not there. What a pass reads and how much stays gathered both take from here; that the
// rest is the same is tested against real ranks: their pools in tests/trainer/sharding_test.cpp
// (PoolsAreThoseOfTheSchedule), what they send in tests/distributed/test_traffic.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/files/tensor_table.h"

namespace satune {

/// Segments whose parameters a pass of `segment` reads. `head`: the last segment; `tied`: it reads the
/// embedding, segment 0.
std::vector<int> segments_read(int segment, bool backward, int head, bool tied);

/// Segments that stay gathered at stage 3: the one in use and the one ahead, and a tied embedding.
constexpr size_t gathered_at_most(bool tied) {
  return tied ? 3 : 2;
}

/// How a run is cut: trainer/sharding.h has the table of stages.
struct Sharded {
  int64_t world_size = 1;  ///< all ranks
  int64_t stage = 0;
  int64_t shard_group = 0;  ///< ranks that hold one model together; 0 = all

  int64_t shares() const { return shard_group > 0 ? shard_group : world_size; }
  int64_t replicas() const { return world_size / shares(); }
};

/// Elements of the segments' flat buffers, padding included, so that equal shares end on the borders that
/// shard_range() cuts at.
struct SegmentSizes {
  std::vector<int64_t> trained, frozen;  ///< by segment; 0 where there is none
  bool tied = false;                     ///< the head reads the embedding

  /// `trained_mask` per table tensor; empty = all trained.
  SegmentSizes(const TensorTable& table, const std::vector<bool>& trained_mask, int64_t world_size);

  int head() const { return static_cast<int>(trained.size()) - 1; }
  int64_t all(int segment) const { return trained[segment] + frozen[segment]; }
  /// Lowest segment with a trained tensor: backward passes end there. One past the head where there is none.
  int lowest_trained() const;
};

/// One segment's forward or backward, and what is sent around it.
struct ScheduledPass {
  int segment = 0;
  bool backward = false;
  std::vector<int> reads;         ///< segments whose parameters it needs
  std::vector<int> gather_now;    ///< those of them that nobody has sent for yet
  std::vector<int> gather_ahead;  ///< those of the next pass, which arrive while it runs
  bool reduces = false;           ///< its gradients leave when it has ended
};

struct ShardSchedule {
  std::vector<ScheduledPass> first;  ///< a step's first micro-batch: nothing is gathered yet
  std::vector<ScheduledPass> later;  ///< the others
  int64_t parameter_pool = 0;        ///< elements of the buffers that parameters are gathered into (stage 3)
  int64_t gradient_pool = 0;         ///< of local gradients (stages 2, 3) and of what is received (world > 1)
  int64_t gradient_pool_touched = 0;  ///< of them, those ever written: all that a CPU pays for
  int64_t replica_pool = 0;           ///< fp32, of sums that replicas exchange
};

ShardSchedule shard_schedule(const SegmentSizes& sizes, const Sharded& sharded);

}  // namespace satune
