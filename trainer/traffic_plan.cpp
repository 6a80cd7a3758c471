#include "trainer/traffic_plan.h"

#include <algorithm>
#include <numeric>

namespace satune {
namespace {

constexpr int64_t kFloatBytes = 4;
constexpr int64_t kNumberBytes = 8;

/// Bytes that a rank sends of a whole of `elements`, which the world size divides.
int64_t sent_bytes(int64_t elements, int64_t element_bytes, int64_t world) {
  return elements / world * (world - 1) * element_bytes;
}

int64_t sum_of(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

/// What moves how often.
class Sizes {
 public:
  Sizes(const PlannedRun& run, const Sharded& sharded)
      : segments_(run.table, run.trained_mask, sharded.world_size),
        shares_(sharded.shares()),
        parameter_(compute_element_bytes(run.settings.precision)),
        gradient_(gradient_element_bytes(run.settings, {0, sharded.world_size})) {}

  const SegmentSizes& segments() const { return segments_; }
  int64_t gather(int segment) const { return sent_bytes(segments_.all(segment), parameter_, shares_); }
  int64_t reduction(int segment) const { return sent_bytes(segments_.trained[segment], gradient_, shares_); }
  int64_t at_update(int64_t stage) const {
    const int64_t trained = sum_of(segments_.trained);
    if (stage >= 3) return 0;
    return sent_bytes(trained, stage == 0 ? kFloatBytes : parameter_, shares_);
  }
  /// A reduce-scatter and an all-gather of this rank's share of the sums.
  int64_t between_replicas(const Sharded& sharded) const {
    const int64_t share = sum_of(segments_.trained) / shares_;
    return 2 * sent_bytes(share, kFloatBytes, sharded.replicas());
  }
  int64_t gathers(const std::vector<int>& segments) const {
    int64_t bytes = 0;
    for (const int segment : segments) bytes += gather(segment);
    return bytes;
  }

 private:
  SegmentSizes segments_;
  int64_t shares_, parameter_, gradient_;
};

/// Forward operations of one token in a segment: 2 for every element of its matrices, and in a layer the two
/// products of attention over half a document, which a layer of Shared Attention computes as well (its
/// anchor's scores are not kept). 8-bit products of a card count as what else takes as long.
double forward_flops(const PlannedRun& run, int segment) {
  const ModelConfig& config = run.config;
  if (segment == 0) return 0;  // a look-up
  if (segment == run.table.num_segments() - 1) {
    return 2.0 * static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size);
  }
  double flops =
      2.0 * static_cast<double>(config.query_size()) * static_cast<double>(run.settings.max_length);
  for (const TensorInfo& tensor : run.table.segment(segment)) {
    if (tensor.shape.size() == 2) flops += 2.0 * static_cast<double>(tensor.numel());
  }
  if (run.settings.fp8 && run.on_card)
    flops -= 2.0 * static_cast<double>(fp8_parameters_of(run.table, segment)) * (1 - 1 / kFp8Speed);
  return flops;
}

/// Two clocks: of the computation, and of what is sent.
class Timeline {
 public:
  explicit Timeline(size_t segments) : arrival_(segments, 0) {}

  void send(int segment, double seconds) {
    link_ = std::max(link_, now_) + seconds;
    arrival_[segment] = link_;
    sending_ += seconds;
  }
  void wait_for(int segment) { now_ = std::max(now_, arrival_[segment]); }
  void compute(double seconds) {
    now_ += seconds;
    computing_ += seconds;
  }
  /// One reduction is in flight: the next one waits for it.
  void reduce(double seconds) {
    wait_for_reduction();
    link_ = std::max(link_, now_) + seconds;
    reduction_ = link_;
    sending_ += seconds;
  }
  void wait_for_reduction() { now_ = std::max(now_, reduction_); }
  double now() const { return now_; }
  double sending() const { return sending_; }
  double exposed() const { return now_ - computing_; }

 private:
  double now_ = 0, link_ = 0, reduction_ = 0, sending_ = 0, computing_ = 0;
  std::vector<double> arrival_;
};

/// Seconds of each segment's passes.
struct PassSeconds {
  std::vector<double> forward, backward;
};

PassSeconds pass_seconds(const PlannedRun& run, const SegmentSizes& sizes,
                         const std::vector<Recording>& recording, double flops) {
  PassSeconds seconds;
  for (int segment = 0; segment <= sizes.head(); ++segment) {
    const double forward = forward_flops(run, segment) * static_cast<double>(run.tokens) / flops;
    // Gradients of the input and, where something is trained, of the weights.
    double backward = sizes.trained[segment] > 0 ? 2 * forward : forward;
    const bool layer = segment > 0 && segment < sizes.head();
    if (layer && recording[segment - 1] == Recording::kRecompute) backward += forward;
    seconds.forward.push_back(forward);
    seconds.backward.push_back(backward);
  }
  return seconds;
}

}  // namespace

TrafficPlan plan_traffic(const PlannedRun& run, const Sharded& sharded) {
  TrafficPlan plan;
  plan.micro_steps = run.settings.gradient_accumulation_steps;
  if (sharded.world_size == 1) return plan;
  const Sizes sizes(run, sharded);
  const ShardSchedule schedule = shard_schedule(sizes.segments(), sharded);
  for (const ScheduledPass& pass : schedule.first) {
    if (pass.reduces) plan.reduced += sizes.reduction(pass.segment);
    plan.gathered_first += sizes.gathers(pass.gather_now) + sizes.gathers(pass.gather_ahead);
  }
  for (const ScheduledPass& pass : schedule.later) {
    plan.gathered_later += sizes.gathers(pass.gather_now) + sizes.gathers(pass.gather_ahead);
  }
  plan.gathered_at_update = sizes.at_update(sharded.stage);
  plan.replicated = sizes.between_replicas(sharded);
  // The norm's part, and two numbers of every micro-step, in fp64.
  plan.exchanged = (1 + 2 * plan.micro_steps) * kNumberBytes * (sharded.world_size - 1);
  return plan;
}

int64_t usual_bytes_per_step(const PlannedRun& run, const Sharded& sharded) {
  const int64_t world = sharded.world_size, micro_steps = run.settings.gradient_accumulation_steps;
  const SegmentSizes sizes(run.table, run.trained_mask, 1);
  const int64_t trained = sum_of(sizes.trained), all = trained + sum_of(sizes.frozen);
  const int64_t parameter = compute_element_bytes(run.settings.precision);
  const int64_t reduced = micro_steps * trained * gradient_element_bytes(run.settings, {0, world});
  const int64_t gathered = (sharded.stage < 3 ? trained : 2 * micro_steps * all) * parameter;
  const int64_t whole = reduced + gathered;
  return whole - whole / world;
}

StepEstimate estimate_step(const PlannedRun& run, const Sharded& sharded,
                           const std::vector<Recording>& recording, const Rates& rates) {
  const Sizes sizes(run, sharded);
  const SegmentSizes& segments = sizes.segments();
  const ShardSchedule schedule = shard_schedule(segments, sharded);
  const PassSeconds seconds = pass_seconds(run, segments, recording, rates.flops);
  const auto send_seconds = [&](int64_t bytes) {
    return static_cast<double>(bytes) / rates.bytes_per_second;
  };
  StepEstimate estimate;
  Timeline timeline(segments.trained.size());
  for (int64_t micro_step = 0; micro_step < run.settings.gradient_accumulation_steps; ++micro_step) {
    for (const ScheduledPass& pass : micro_step == 0 ? schedule.first : schedule.later) {
      for (const int segment : pass.gather_now) timeline.send(segment, send_seconds(sizes.gather(segment)));
      for (const int segment : pass.reads) timeline.wait_for(segment);
      for (const int segment : pass.gather_ahead) timeline.send(segment, send_seconds(sizes.gather(segment)));
      const double own = (pass.backward ? seconds.backward : seconds.forward)[pass.segment];
      timeline.compute(own);
      if (micro_step == 0) (pass.backward ? estimate.backward : estimate.forward) += own;
      if (pass.reduces) timeline.reduce(send_seconds(sizes.reduction(pass.segment)));
    }
  }
  timeline.wait_for_reduction();
  if (sharded.world_size > 1) {
    timeline.send(0, send_seconds(sizes.between_replicas(sharded)));
    timeline.send(0, send_seconds(sizes.at_update(sharded.stage)));
    timeline.wait_for(0);
  }
  estimate.sending = timeline.sending();
  estimate.exposed = timeline.exposed();
  estimate.step = timeline.now();
  return estimate;
}

}  // namespace satune
