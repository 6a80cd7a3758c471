// ZeRO (Rajbhandari et al., arXiv 1910.02054) over the flat buffers of the segments: which part of
// parameters, gradients and optimizer state lives on which rank, and what travels when.
//
// The stage is data. In every stage a segment's gradients are reduce-scattered over the same cuts as soon as
// its backward ends, while the next segment's runs, and each rank sums its share over micro-batches in fp32:
// so the stages agree to the bit. They differ in what stays:
//
//   stage                    0           1           2            3
//   optimizer state          whole       share       share        share
//   local gradients          whole       whole       2 segments   2 segments
//   parameters               whole       whole       whole        share + gathered segments
//   gathered per step        gradients   parameters  parameters   -
//   gathered per micro-step  -           -           -            parameters, for forward and backward
//
// A group of one writes gradients straight into the sums: there is nothing to reduce.
//
// Ranks may form several shard groups, each of which holds the model once (hybrid sharding, as in PyTorch's
// HYBRID_SHARD): everything above then happens inside a group, and once a step the ranks of equal shares in
// all groups, the replicas, sum their shares.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "model/llama.h"
#include "trainer/buffer_pool.h"
#include "trainer/collective.h"
#include "trainer/coordinator.h"
#include "trainer/process_group.h"
#include "trainer/shard.h"

namespace satune {

/// The groups that a rank takes part in.
struct ProcessGroups {
  ProcessGroup& all;
  ProcessGroup& shards;    ///< that hold one model together
  ProcessGroup& replicas;  ///< that hold the same share, one of each shard group
};

/// How a model's parameter buffers must be made for a stage.
BufferLayout parameter_layout(int stage, int64_t world_size);

class Sharding final : public SegmentHooks {
 public:
  /// `model` has parameter_layout(stage, groups.all.world().size). Local gradients are of `gradient_type`,
  /// their sums fp32 (fp64 for fp64 models). The references must outlive it.
  Sharding(Llama& model, const ProcessGroups& groups, Coordinator& coordinator, int stage,
           at::ScalarType gradient_type);
  ~Sharding() override;

  int stage() const { return stage_; }
  /// This rank among those that hold one model together.
  const World& world() const { return groups_.shards.world(); }
  /// Of several ranks with the same share, the one that saves it.
  bool saves() const { return groups_.replicas.world().rank == 0; }
  /// Whose share of the optimizer state this rank holds: everything at stage 0.
  World optimizer_owner() const { return stage_ == 0 ? World{} : world(); }
  /// The weights that the optimizer of optimizer_owner() writes, by segment.
  std::vector<at::Tensor> weight_shards() const;
  /// Where elements [begin, begin + count) of a frozen tensor are kept on this rank: empty where another rank
  /// keeps them. To be filled once, before the first pass.
  struct FrozenPiece {
    size_t tensor;
    int64_t begin;
    at::Tensor values;
  };
  std::vector<FrozenPiece> frozen_pieces() const;
  /// Lets every rank see what the optimizers have written. All ranks call it.
  void publish_weights();

  /// Gives back what is gathered (stage 3), so that the next pass starts as the first one of a step does.
  void forget_gathered();

  // The gradients of a step: begin_step(); per micro-batch a pass with gradients(), accumulate() and these
  // hooks, then end_micro_batch(); finish_gradients().
  void begin_step();
  ParameterBuffers& gradients() { return gradients_; }
  bool accumulate() const { return direct_ && micro_batches_ > 0; }
  void end_micro_batch() { ++micro_batches_; }
  /// Waits until the step's gradients are summed.
  void finish_gradients();
  /// This rank's share of the sums, by segment: what a norm is taken over.
  std::vector<at::Tensor> gradient_shares() const;
  /// The sums that the optimizer of optimizer_owner() takes. At stage 0 they are gathered here: all ranks
  /// call it.
  std::vector<at::Tensor> optimizer_gradients();

  /// Bytes of the buffers made so far, by what for: what ShardSchedule has in elements.
  struct PoolBytes {
    int64_t parameters = 0, gradients = 0, replicas = 0;
  };
  PoolBytes pool_bytes() const {
    return {parameter_pool_.bytes(), gradient_pool_.bytes(), sum_pool_.bytes()};
  }

  void before_forward(int segment) override;
  void after_forward(int segment) override;
  void before_backward(int segment) override;
  void after_backward(int segment) override;
  StepTrace* trace() override { return coordinator_.trace(); }

 private:
  /// A segment whose parameters are gathered or being gathered (stage 3).
  struct Gathered {
    int segment;
    std::vector<std::unique_ptr<Work>> works;  ///< empty once waited for
    size_t journey = 0;                        ///< of the trace
  };
  /// A segment whose gradients are being reduced.
  struct Reduction {
    int segment = -1;
    std::unique_ptr<Work> work;
    at::Tensor scratch;
    size_t journey = 0;  ///< of the trace
  };

  bool sharded_parameters() const { return stage_ >= 3; }
  int head_segment() const { return gradients_.num_segments() - 1; }
  /// Segments whose parameters the passes of `segment` read.
  std::vector<int> read_by(int segment, bool backward) const;
  void need_parameters(const std::vector<int>& now, const std::vector<int>& next);
  void start_gather(int segment, const std::vector<int>& needed);
  void wait_gathered(int segment);
  void give_back(int segment);
  /// Around the kernels of a pass, between the hooks before and after it.
  void begin_pass(int segment, bool backward);
  void end_pass();
  size_t depart(const char* what, int segment);
  void arrive(size_t journey);
  void open_gradients(int segment);
  void finish_reduction();
  void sum_over_replicas();

  Llama& model_;
  const ProcessGroups groups_;
  Coordinator& coordinator_;
  const int stage_;
  const bool direct_;  ///< a rank alone
  ParameterBuffers gradients_;
  const int lowest_;                       ///< segment at which the backward ends
  std::vector<at::Tensor> sums_;           ///< this rank's share, by segment; empty where direct
  std::vector<at::Tensor> gathered_sums_;  ///< stage 0: of all ranks
  std::vector<at::Tensor> trained_shards_, frozen_shards_;  ///< stage 3
  BufferPool parameter_pool_, gradient_pool_, sum_pool_;
  std::deque<Gathered> gathered_;  ///< oldest first
  Reduction reduction_;
  std::optional<QueuedBehind> pass_;
  std::optional<size_t> traced_pass_;
  int64_t micro_batches_ = 0;
};

}  // namespace satune
