#include "trainer/shard_schedule.h"

#include <algorithm>
#include <deque>
#include <optional>

#include "trainer/shard.h"

namespace satune {
namespace {

constexpr int64_t kAlignment = 64;  // elements, of a group of one (BufferLayout)

bool contains(const std::vector<int>& list, int value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// BufferPool without memory.
class PoolSize {
 public:
  struct Buffer {
    int64_t numel = 0, touched = 0;
  };

  /// `used`: elements that will be written.
  Buffer take(int64_t numel, int64_t used) {
    auto fits = std::find_if(free_.begin(), free_.end(), [&](const Buffer& b) { return b.numel >= numel; });
    Buffer buffer{numel, 0};
    if (fits == free_.end()) {
      total_ += numel;
    } else {
      buffer = *fits;
      free_.erase(fits);
    }
    touched_ += std::max<int64_t>(0, used - buffer.touched);
    buffer.touched = std::max(buffer.touched, used);
    return buffer;
  }
  Buffer take(int64_t numel) { return take(numel, numel); }
  void give(const Buffer& buffer) {
    const auto larger =
        std::find_if(free_.begin(), free_.end(), [&](const Buffer& b) { return b.numel >= buffer.numel; });
    free_.insert(larger, buffer);
  }
  int64_t total() const { return total_; }
  int64_t touched() const { return touched_; }

 private:
  std::vector<Buffer> free_;  // ascending
  int64_t total_ = 0, touched_ = 0;
};

class Replay {
 public:
  Replay(const SegmentSizes& sizes, const Sharded& sharded)
      : sizes_(sizes), sharded_(sharded), open_(sizes.trained.size()) {}

  std::vector<ScheduledPass> micro_step() {
    std::vector<ScheduledPass> passes = forward();
    const int head = sizes_.head(), lowest = sizes_.lowest_trained();
    passes.push_back(backward(head));
    for (int segment = head - 1; segment >= std::max(lowest, 1); --segment) {
      passes.push_back(backward(segment));
    }
    if (lowest == 0) passes.push_back(backward(0));
    return passes;
  }
  std::vector<ScheduledPass> forward() {
    std::vector<ScheduledPass> passes;
    for (int segment = 0; segment <= sizes_.head(); ++segment) {
      ScheduledPass pass{segment, false, reads(segment, false), {}, {}, false};
      gather(pass, segment == sizes_.head() ? std::vector<int>() : reads(segment + 1, false));
      passes.push_back(std::move(pass));
    }
    return passes;
  }
  void end_step() {
    finish_reduction();
    while (!gathered_.empty()) drop(gathered_.begin());
  }
  int64_t parameter_pool() const { return parameters_.total(); }
  int64_t gradient_pool() const { return gradients_.total(); }
  int64_t gradient_pool_touched() const { return gradients_.touched(); }

 private:
  struct Gathered {
    int segment;
    std::vector<PoolSize::Buffer> buffers;
  };

  ScheduledPass backward(int segment) {
    ScheduledPass pass{segment, true, reads(segment, true), {}, {}, false};
    gather(pass, segment > sizes_.lowest_trained() ? reads(segment - 1, true) : std::vector<int>());
    open(segment);
    if (segment == sizes_.head() && sizes_.tied) open(0);
    if (sharded_.world_size > 1 && sizes_.trained[segment] > 0) {
      pass.reduces = true;
      finish_reduction();
      reducing_ = segment;
      // Nothing arrives from the rank itself.
      const int64_t whole = sizes_.trained[segment];
      scratch_ = gradients_.take(whole, whole - whole / sharded_.shares());
    }
    return pass;
  }

  std::vector<int> reads(int segment, bool backward) const {
    return segments_read(segment, backward, sizes_.head(), sizes_.tied);
  }

  void gather(ScheduledPass& pass, const std::vector<int>& next) {
    if (sharded_.stage < 3) return;
    std::vector<int> needed = pass.reads;
    for (const int segment : pass.reads) gather_one(segment, needed, pass.gather_now);
    needed.insert(needed.end(), next.begin(), next.end());
    for (const int segment : next) gather_one(segment, needed, pass.gather_ahead);
  }

  void gather_one(int segment, const std::vector<int>& needed, std::vector<int>& sent) {
    const auto is_it = [&](const Gathered& gathered) { return gathered.segment == segment; };
    if (std::any_of(gathered_.begin(), gathered_.end(), is_it)) return;
    const size_t room = gathered_at_most(sizes_.tied);
    for (auto old = gathered_.begin(); old != gathered_.end() && gathered_.size() >= room;) {
      old = contains(needed, old->segment) ? old + 1 : drop(old);
    }
    Gathered gathered{segment, {}};
    for (const int64_t numel : {sizes_.trained[segment], sizes_.frozen[segment]}) {
      if (numel > 0) gathered.buffers.push_back(parameters_.take(numel));
    }
    gathered_.push_back(std::move(gathered));
    sent.push_back(segment);
  }

  std::deque<Gathered>::iterator drop(std::deque<Gathered>::iterator old) {
    for (const PoolSize::Buffer& buffer : old->buffers) parameters_.give(buffer);
    return gathered_.erase(old);
  }

  void open(int segment) {
    if (sharded_.world_size == 1 || sizes_.trained[segment] == 0) return;
    if (reducing_ == segment) finish_reduction();
    if (sharded_.stage < 2 || open_[segment]) return;
    open_[segment] = gradients_.take(sizes_.trained[segment]);
  }

  void finish_reduction() {
    if (!reducing_) return;
    gradients_.give(scratch_);
    if (open_[*reducing_]) gradients_.give(*open_[*reducing_]);
    open_[*reducing_].reset();
    reducing_.reset();
  }

  const SegmentSizes& sizes_;
  const Sharded& sharded_;
  PoolSize parameters_, gradients_;
  std::deque<Gathered> gathered_;
  std::vector<std::optional<PoolSize::Buffer>> open_;  // local gradients that have a buffer, by segment
  std::optional<int> reducing_;
  PoolSize::Buffer scratch_;
};

int64_t replica_pool(const SegmentSizes& sizes, const Sharded& sharded) {
  PoolSize pool;
  for (const int64_t segment : sizes.trained) {
    if (sharded.replicas() == 1 || segment == 0) continue;
    const int64_t share = segment / sharded.shares();
    const PoolSize::Buffer received = pool.take(share), part = pool.take(share / sharded.replicas());
    pool.give(received);
    pool.give(part);
  }
  return pool.total();
}

}  // namespace

std::vector<int> segments_read(int segment, bool backward, int head, bool tied) {
  if (segment == head && tied) return {segment, 0};
  // The embedding's backward scatters; it reads no weight.
  if (segment == 0 && backward) return {};
  return {segment};
}

SegmentSizes::SegmentSizes(const TensorTable& table, const std::vector<bool>& trained_mask,
                           int64_t world_size)
    : trained(table.num_segments()),
      frozen(table.num_segments()),
      tied(table.find("lm_head.weight") == nullptr) {
  const auto tensors = table.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    (trained_mask.empty() || trained_mask[i] ? trained : frozen)[tensors[i].segment] += tensors[i].numel();
  }
  const int64_t border = world_size > 1 ? world_size * kShardBlock : kAlignment;
  for (std::vector<int64_t>* sizes : {&trained, &frozen}) {
    for (int64_t& size : *sizes) size = (size + border - 1) / border * border;
  }
}

int SegmentSizes::lowest_trained() const {
  const auto found = std::find_if(trained.begin(), trained.end(), [](int64_t size) { return size > 0; });
  return static_cast<int>(found - trained.begin());
}

ShardSchedule shard_schedule(const SegmentSizes& sizes, const Sharded& sharded) {
  Replay replay(sizes, sharded);
  ShardSchedule schedule;
  schedule.first = replay.micro_step();
  schedule.later = replay.micro_step();
  // An evaluation, and steps until the pools have grown, and each buffer is written, as far as they ever are.
  replay.end_step();
  replay.forward();
  replay.forward();
  for (int64_t before = -1; replay.gradient_pool_touched() > before;) {
    before = replay.gradient_pool_touched();
    replay.micro_step();
    replay.micro_step();
    replay.end_step();
  }
  schedule.parameter_pool = replay.parameter_pool();
  schedule.gradient_pool = replay.gradient_pool();
  schedule.gradient_pool_touched = replay.gradient_pool_touched();
  schedule.replica_pool = replica_pool(sizes, sharded);
  return schedule;
}

}  // namespace satune
