#include "trainer/sharding.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "model/ops/dispatch.h"
#include "trainer/adamw.h"
#include "trainer/collective.h"
#include "trainer/shard_schedule.h"

namespace satune {
namespace {

constexpr const char* kGather = "all-gather of parameters";
constexpr const char* kGatherGradients = "all-gather of gradients";
constexpr const char* kReduce = "reduce-scatter of gradients";

BufferLayout layout(bool resident, int64_t world_size) {
  BufferLayout layout;
  // Equal shares, cut where shard_range() cuts, which replicas can cut again.
  if (world_size > 1) layout.alignment = world_size * kShardBlock;
  layout.resident = resident;
  return layout;
}

bool contains(const std::vector<int>& list, int value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

using Works = std::vector<std::unique_ptr<Work>>;

/// What a trace calls the passes of a segment.
const char* pass_name(int segment, int head, bool backward) {
  if (segment == 0) return backward ? "embedding backward" : "embedding forward";
  if (segment == head) return backward ? "head backward" : "head forward";
  return backward ? "layer {} backward" : "layer {} forward";
}

void wait_all(const Works& works) {
  for (const auto& work : works) work->wait();
}

/// Where a backward pass ends: 0 for a model that is trained whole.
int lowest_trained(const ParameterBuffers& gradients) {
  int segment = 0;
  while (segment < gradients.num_segments() - 1 && gradients.used(segment) == 0) ++segment;
  return segment;
}

std::vector<at::Tensor> make_shards(const ParameterBuffers& buffers, const World& world, at::ScalarType type,
                                    at::Device device) {
  std::vector<at::Tensor> shards;
  for (int i = 0; i < buffers.num_segments(); ++i) {
    const int64_t numel = shard_range(buffers.flat(i).numel(), world).size();
    shards.push_back(at::zeros({numel}, at::TensorOptions(type).device(device)));
  }
  return shards;
}

}  // namespace

BufferLayout parameter_layout(int stage, int64_t world_size) {
  return layout(stage < 3, world_size);
}

Sharding::Sharding(Llama& model, const ProcessGroups& groups, Coordinator& coordinator, int stage,
                   at::ScalarType gradient_type)
    : model_(model),
      groups_(groups),
      coordinator_(coordinator),
      stage_(stage),
      direct_(groups.all.world().size == 1),
      gradients_(model.make_gradients(gradient_type, layout(direct_ || stage < 2, groups.all.world().size))),
      lowest_(lowest_trained(gradients_)),
      parameter_pool_(model.weights().type(), model.weights().device()),
      gradient_pool_(gradient_type, model.weights().device()),
      sum_pool_(statistics_type(model.weights().type()), model.weights().device()) {
  const at::Device device = model.weights().device();
  if (!direct_) sums_ = make_shards(gradients_, world(), statistics_type(model.weights().type()), device);
  if (sharded_parameters()) {
    trained_shards_ = make_shards(model.weights().trained, world(), model.weights().type(), device);
    frozen_shards_ = make_shards(model.weights().frozen, world(), model.weights().type(), device);
  }
}

Sharding::~Sharding() = default;

// --- parameters ---

std::vector<at::Tensor> Sharding::weight_shards() const {
  return sharded_parameters() ? trained_shards_ : shards_of(model_.weights().trained, optimizer_owner());
}

std::vector<Sharding::FrozenPiece> Sharding::frozen_pieces() const {
  const ParameterBuffers& frozen = model_.weights().frozen;
  const World owner = sharded_parameters() ? world() : World{};
  std::vector<FrozenPiece> pieces;
  for (int segment = 0; segment < frozen.num_segments(); ++segment) {
    const at::Tensor& values = sharded_parameters() ? frozen_shards_[segment] : frozen.flat(segment);
    for (const ShardPiece& piece : shard_pieces(frozen, segment, owner)) {
      pieces.push_back(
          {piece.tensor, piece.elements.begin, values.narrow(0, piece.shard_offset, piece.elements.size())});
    }
  }
  return pieces;
}

void Sharding::publish_weights() {
  model_.weights_changed();
  forget_gathered();
  if (stage_ == 0 || sharded_parameters()) return;
  const ParameterBuffers& weights = model_.weights().trained;
  const std::vector<at::Tensor> shards = weight_shards();
  in_collective(coordinator_, kGather, [&] {
    Works works;
    for (int i = 0; i < weights.num_segments(); ++i) {
      if (weights.used(i) > 0) works.push_back(groups_.shards.all_gather(weights.flat(i), shards[i]));
    }
    wait_all(works);
  });
}

std::vector<int> Sharding::read_by(int segment, bool backward) const {
  return segments_read(segment, backward, head_segment(), model_.tied());
}

void Sharding::start_gather(int segment, const std::vector<int>& needed) {
  if (std::any_of(gathered_.begin(), gathered_.end(),
                  [&](const Gathered& g) { return g.segment == segment; }))
    return;
  Weights& weights = model_.weights();
  // Make room: the oldest that nobody needs goes. Kernels that still read it are ahead in the stream.
  const size_t room = gathered_at_most(model_.tied());
  for (auto old = gathered_.begin(); old != gathered_.end() && gathered_.size() >= room;) {
    if (contains(needed, old->segment)) {
      ++old;
      continue;
    }
    give_back(old->segment);
    old = gathered_.erase(old);
  }
  Gathered gathered{segment, {}, depart("gather of segment {}", segment)};
  const auto gather = [&](ParameterBuffers& buffers, const at::Tensor& shard) {
    const int64_t numel = buffers.flat(segment).numel();
    if (numel == 0) return;
    buffers.attach(segment, parameter_pool_.take(numel));
    gathered.works.push_back(groups_.shards.all_gather(buffers.flat(segment), shard));
  };
  in_collective(coordinator_, kGather, [&] {
    gather(weights.trained, trained_shards_[segment]);
    gather(weights.frozen, frozen_shards_[segment]);
  });
  gathered_.push_back(std::move(gathered));
}

void Sharding::wait_gathered(int segment) {
  for (Gathered& gathered : gathered_) {
    if (gathered.segment != segment) continue;
    if (gathered.works.empty()) continue;
    in_collective(coordinator_, kGather, [&] { wait_all(gathered.works); });
    gathered.works.clear();
    arrive(gathered.journey);
  }
}

void Sharding::give_back(int segment) {
  wait_gathered(segment);
  for (ParameterBuffers* buffers : {&model_.weights().trained, &model_.weights().frozen}) {
    if (buffers->attached(segment)) parameter_pool_.give(buffers->detach(segment));
  }
}

void Sharding::need_parameters(const std::vector<int>& now, const std::vector<int>& next) {
  if (!sharded_parameters()) return;
  std::vector<int> needed = now;
  for (const int segment : now) start_gather(segment, needed);
  needed.insert(needed.end(), next.begin(), next.end());
  for (const int segment : next) start_gather(segment, needed);
  for (const int segment : now) wait_gathered(segment);
}

void Sharding::forget_gathered() {
  end_pass();
  for (const Gathered& gathered : gathered_) give_back(gathered.segment);
  gathered_.clear();
}

// --- gradients ---

void Sharding::begin_step() {
  finish_reduction();  // of a step that was given up
  micro_batches_ = 0;
}

void Sharding::open_gradients(int segment) {
  if (direct_ || gradients_.used(segment) == 0) return;
  if (reduction_.segment == segment) finish_reduction();
  if (stage_ < 2 || gradients_.attached(segment)) return;
  const int64_t numel = gradients_.flat(segment).numel();
  gradients_.attach(segment, gradient_pool_.take(numel));
  // Padding takes part in the sums and the norm.
  gradients_.flat(segment).narrow(0, gradients_.used(segment), numel - gradients_.used(segment)).zero_();
}

void Sharding::finish_reduction() {
  if (!reduction_.work) return;
  in_collective(coordinator_, kReduce, [&] { reduction_.work->wait(); });
  arrive(reduction_.journey);
  gradient_pool_.give(reduction_.scratch);
  if (stage_ >= 2) gradient_pool_.give(gradients_.detach(reduction_.segment));
  reduction_ = {};
}

void Sharding::finish_gradients() {
  finish_reduction();
  sum_over_replicas();
}

/// Each replica sums its part of the share, in the order of the replicas, and gathers the others'.
void Sharding::sum_over_replicas() {
  const int64_t replicas = groups_.replicas.world().size;
  if (replicas == 1) return;
  for (int i = 0; i < gradients_.num_segments(); ++i) {
    if (gradients_.used(i) == 0) continue;
    const int64_t numel = sums_[i].numel();
    at::Tensor scratch = sum_pool_.take(numel), part = sum_pool_.take(numel / replicas);
    const at::Tensor sum = part.narrow(0, 0, numel / replicas);
    in_collective(coordinator_, "sum of gradients over replicas", [&] {
      groups_.replicas.reduce_scatter(sums_[i], scratch.narrow(0, 0, numel), sum, false)->wait();
      groups_.replicas.all_gather(sums_[i], sum)->wait();
    });
    sum_pool_.give(std::move(scratch));
    sum_pool_.give(std::move(part));
  }
}

std::vector<at::Tensor> Sharding::gradient_shares() const {
  return direct_ ? shards_of(gradients_, World{}) : sums_;
}

std::vector<at::Tensor> Sharding::optimizer_gradients() {
  if (direct_ || stage_ > 0) return gradient_shares();
  if (gathered_sums_.empty()) {
    for (int i = 0; i < gradients_.num_segments(); ++i) {
      gathered_sums_.push_back(at::empty({gradients_.flat(i).numel()}, sums_[i].options()));
    }
  }
  in_collective(coordinator_, kGatherGradients, [&] {
    Works works;
    for (int i = 0; i < gradients_.num_segments(); ++i) {
      if (gradients_.used(i) > 0) works.push_back(groups_.shards.all_gather(gathered_sums_[i], sums_[i]));
    }
    wait_all(works);
  });
  return gathered_sums_;
}

// --- passes ---

void Sharding::begin_pass(int segment, bool backward) {
  if (!direct_) pass_.emplace(coordinator_, model_.weights().device());
  if (trace() == nullptr) return;
  const int head = head_segment();
  traced_pass_ =
      trace()->begin(pass_name(segment, head, backward), segment > 0 && segment < head ? segment - 1 : -1);
}

void Sharding::end_pass() {
  if (traced_pass_ && trace() != nullptr) trace()->end(*traced_pass_);
  traced_pass_.reset();
  pass_.reset();
}

size_t Sharding::depart(const char* what, int segment) {
  return trace() != nullptr ? trace()->depart(what, segment) : 0;
}

void Sharding::arrive(size_t journey) {
  if (trace() != nullptr) trace()->arrive(journey);
}

void Sharding::before_forward(int segment) {
  coordinator_.at_phase("forward", segment);
  coordinator_.checkpoint();
  const bool last = segment == head_segment();
  need_parameters(read_by(segment, false), last ? std::vector<int>() : read_by(segment + 1, false));
  begin_pass(segment, false);
}

void Sharding::after_forward(int) {
  end_pass();
}

void Sharding::before_backward(int segment) {
  coordinator_.at_phase("backward", segment);
  coordinator_.checkpoint();
  need_parameters(read_by(segment, true),
                  segment > lowest_ ? read_by(segment - 1, true) : std::vector<int>());
  open_gradients(segment);
  if (segment == head_segment() && model_.tied()) open_gradients(0);
  begin_pass(segment, true);
}

void Sharding::after_backward(int segment) {
  end_pass();
  if (direct_ || gradients_.used(segment) == 0) return;
  finish_reduction();  // the segment before had this one's backward to arrive
  const at::Tensor& parts = gradients_.flat(segment);
  at::Tensor scratch = gradient_pool_.take(parts.numel());
  const size_t journey = depart("reduction of segment {}", segment);
  auto work = in_collective(coordinator_, kReduce, [&] {
    return groups_.shards.reduce_scatter(parts, scratch.narrow(0, 0, parts.numel()), sums_[segment],
                                         micro_batches_ > 0);
  });
  reduction_ = {segment, std::move(work), std::move(scratch), journey};
}

}  // namespace satune
