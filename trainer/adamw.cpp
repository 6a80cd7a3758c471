#include "trainer/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "model/ops/cuda_stream.h"
#include "trainer/adamw_kernels.h"
#include "trainer/cuda_kernels.h"

namespace satune {
namespace {

// Elements that pass through fp32 at a time while state is filled: a multiple of kStateBlock.
constexpr int64_t kFillPiece = int64_t{1} << 20;

// Elements of one task: its four arrays fit the second-level cache.
constexpr int64_t kChunk = 16384;

template <typename F>
void for_chunks(int64_t begin, int64_t end, const F& f) {
  const int64_t chunks = (end - begin + kChunk - 1) / kChunk;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t from = begin + chunk * kChunk;
      f(from, std::min(end, from + kChunk));
    }
  });
}

AdamWCoefficients coefficients(const AdamWOptions& options, double gradient_scale, double learning_rate,
                               int64_t t, bool decay) {
  const double bias1 = 1.0 - std::pow(options.beta1, static_cast<double>(t));
  const double bias2 = 1.0 - std::pow(options.beta2, static_cast<double>(t));
  AdamWCoefficients c{};
  c.gradient_scale = static_cast<float>(gradient_scale);
  c.beta1 = static_cast<float>(options.beta1);
  c.beta2 = static_cast<float>(options.beta2);
  c.one_minus_beta1 = static_cast<float>(1.0 - options.beta1);
  c.one_minus_beta2 = static_cast<float>(1.0 - options.beta2);
  c.decay = decay ? static_cast<float>(1.0 - learning_rate * options.weight_decay) : 1.0F;
  c.step_size = static_cast<float>(learning_rate / bias1);
  c.bias_correction2_sqrt = static_cast<float>(std::sqrt(bias2));
  c.epsilon = static_cast<float>(options.epsilon);
  return c;
}

/// Elements [begin, end) of a share; `gradient`: of those from `first` on.
void update_on_cpu(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                   const at::Tensor& gradient, int64_t first, int64_t begin, int64_t end,
                   const AdamWCoefficients& c) {
  float* p = master.data_ptr<float>();
  float* m = exp_avg.data_ptr<float>();
  float* v = exp_avg_sq.data_ptr<float>();
  const void* g = gradient.const_data_ptr();
  const bool half_width = gradient.scalar_type() == at::kBFloat16;
  for_chunks(begin, end, [&](int64_t from, int64_t to) {
    if (half_width) {
      adamw_update_bf16(p + from, m + from, v + from, static_cast<const uint16_t*>(g) + from - first,
                        to - from, c);
    } else {
      adamw_update_f32(p + from, m + from, v + from, static_cast<const float*>(g) + from - first, to - from,
                       c);
    }
  });
}

/// In one pass, the weights with it. `weights` may be the master itself.
void update_on_card(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                    const at::Tensor& gradient, const at::Tensor& weights, int64_t begin, int64_t end,
                    const AdamWCoefficients& c) {
  const auto at = [&](const at::Tensor& values) {
    TORCH_CHECK(values.is_contiguous() && end <= values.numel());
    return static_cast<char*>(values.data_ptr()) + begin * static_cast<int64_t>(values.element_size());
  };
  cuda::AdamWArrays arrays{};
  arrays.master = master.data_ptr<float>() + begin;
  arrays.exp_avg = exp_avg.data_ptr<float>() + begin;
  arrays.exp_avg_sq = exp_avg_sq.data_ptr<float>() + begin;
  arrays.gradient = at(gradient);
  arrays.gradient_element = cuda::element_of(gradient);
  arrays.weights = master.is_alias_of(weights) ? nullptr : at(weights);
  arrays.weight_element = cuda::element_of(weights);
  cuda::adamw_update(arrays, end - begin, c, cuda::current_stream(master));
}

/// Of a whole share in a memory mode: one pass, the weights with it. `weights` may be part of the state.
void update_state_on_card(StateArrays& state, const at::Tensor& gradient, const at::Tensor& weights,
                          std::span<const StatePiece> pieces, const StateUpdate& update) {
  TORCH_CHECK(gradient.is_contiguous() && weights.is_contiguous() && gradient.numel() == weights.numel());
  cuda::AdamWState arrays{};
  arrays.master = state.master.memory();
  arrays.exp_avg = state.exp_avg.memory();
  arrays.exp_avg_sq = state.exp_avg_sq.memory();
  arrays.gradient = gradient.const_data_ptr();
  arrays.gradient_element = cuda::element_of(gradient);
  if (state.master.form() == StateForm::kFp32 && !state.master.numbers().is_alias_of(weights))
    arrays.master.weights = weights.mutable_data_ptr();
  arrays.weight_element = cuda::element_of(weights);
  std::vector<cuda::AdamWPiece> places;
  places.reserve(pieces.size());
  for (const StatePiece& piece : pieces) {
    places.push_back({piece.begin(), piece.end(), piece.where.elements.begin,
                      static_cast<uint32_t>(piece.where.tensor), piece.decay});
  }
  cuda::adamw_update_state(arrays, gradient.numel(), places.data(), static_cast<int64_t>(places.size()),
                           update, cuda::current_stream(gradient));
}

/// Both on one device.
void round_weights(const at::Tensor& master, const at::Tensor& weights) {
  const bool rounds = master.scalar_type() == at::kFloat && weights.scalar_type() == at::kBFloat16;
  if (!master.is_cpu() || !rounds) {
    weights.copy_(master);
    return;
  }
  const float* from = master.const_data_ptr<float>();
  auto* to = static_cast<uint16_t*>(weights.mutable_data_ptr());
  for_chunks(0, master.numel(),
             [&](int64_t begin, int64_t end) { round_to_bf16(from + begin, to + begin, end - begin); });
}

}  // namespace

AdamWOptions::AdamWOptions(const Settings& settings)
    : beta1(settings.adam_beta1),
      beta2(settings.adam_beta2),
      epsilon(settings.adam_epsilon),
      weight_decay(settings.weight_decay),
      format(settings),
      seed(settings.seed) {}

std::vector<at::Tensor> shards_of(const ParameterBuffers& buffers, const World& owner) {
  std::vector<at::Tensor> shards;
  for (int i = 0; i < buffers.num_segments(); ++i) {
    const ElementRange range = shard_range(buffers.flat(i).numel(), owner);
    shards.push_back(buffers.flat(i).slice(0, range.begin, range.end));
  }
  return shards;
}

AdamW::AdamW(const ParameterBuffers& weights, std::vector<at::Tensor> shards, const AdamWOptions& options,
             const World& owner, at::Device state_device)
    : weights_(weights), options_(options), owner_(owner), segments_(weights.num_segments()) {
  for (int i = 0; i < weights.num_segments(); ++i) {
    SegmentState& segment = segments_[i];
    segment.range = shard_range(weights.flat(i).numel(), owner);
    segment.shard = std::move(shards[i]);
    TORCH_CHECK(segment.shard.numel() == segment.range.size(), "segment ", i, ": a shard of another size");
    for (const ShardPiece& piece : shard_pieces(weights, i, owner)) {
      segment.pieces.push_back({piece, weights.table().tensors()[piece.tensor].decay});
    }
    segment.runs = decay_runs(segment.pieces);
    make_state(segment, state_device);
  }
  if (!state_device.is_cpu() || weights.flat(0).is_cpu()) return;
  TORCH_CHECK(options.host_piece > 0 && options.host_piece % kStateTile == 0);
  int64_t longest = 0;
  for (const SegmentState& segment : segments_) longest = std::max(longest, segment.range.size());
  staging_ = std::make_unique<HostStaging>(weights.flat(0).device(), weights.flat(0).scalar_type(),
                                           std::min(longest, options.host_piece));
}

AdamW::AdamW(const ParameterBuffers& weights, const AdamWOptions& options, const World& owner)
    : AdamW(weights, shards_of(weights, owner), options, owner, weights.flat(0).device()) {}

bool AdamW::SegmentState::all_fp32() const {
  return arrays.master.form() == StateForm::kFp32 && arrays.exp_avg.form() == StateForm::kFp32;
}

const StateArray& AdamW::SegmentState::array(std::string_view part) const {
  if (part == "master") return arrays.master;
  if (part == "exp_avg") return arrays.exp_avg;
  TORCH_CHECK(part == "exp_avg_sq", "no optimizer state named ", part);
  return arrays.exp_avg_sq;
}

void AdamW::make_state(SegmentState& segment, at::Device state_device) const {
  const StateFormat& format = options_.format;
  const int64_t numel = segment.range.size();
  if (format.master_weights == MasterWeights::kFp32) {
    segment.numbers = segment.shard.to(at::TensorOptions(state_device).dtype(at::kFloat));
    segment.arrays.master = StateArray(segment.numbers);
  } else {
    segment.numbers = segment.shard.to(state_device);
    segment.arrays.master = format.master_weights == MasterWeights::kSplit
                                ? StateArray::split(segment.numbers)
                                : StateArray(segment.numbers);
  }
  segment.arrays.exp_avg = StateArray(moment_form(format.moments, false), numel, state_device);
  segment.arrays.exp_avg_sq = StateArray(moment_form(format.moments, true), numel, state_device);
}

std::vector<AdamW::Run> AdamW::decay_runs(const std::vector<StatePiece>& pieces) {
  std::vector<Run> runs;
  for (const StatePiece& piece : pieces) {
    if (!runs.empty() && runs.back().end == piece.begin() && runs.back().decay == piece.decay) {
      runs.back().end = piece.end();
    } else {
      runs.push_back({piece.begin(), piece.end(), piece.decay});
    }
  }
  return runs;
}

void AdamW::update(std::span<const at::Tensor> gradients, double gradient_scale, double learning_rate,
                   int64_t t) {
  const auto coefficients_of = [&](bool decay) {
    return coefficients(options_, gradient_scale, learning_rate, t, decay);
  };
  apply(gradients, {coefficients_of(true), coefficients_of(false), options_.seed, t});
}

void AdamW::update(std::span<const at::Tensor> gradients, const at::Tensor& gradient_scale,
                   double learning_rate, int64_t t) {
  TORCH_CHECK(gradient_scale.scalar_type() == at::kFloat && gradient_scale.numel() == 1);
  const bool on_card = cuda::on_card(gradient_scale) && cuda::on_card(segments_[0].numbers);
  if (!on_card) {
    const float scale =
        gradient_scale.is_cpu() ? *gradient_scale.const_data_ptr<float>() : gradient_scale.item<float>();
    if (!std::isnan(scale)) update(gradients, scale, learning_rate, t);
    return;
  }
  const auto coefficients_of = [&](bool decay) {
    AdamWCoefficients c = coefficients(options_, 1, learning_rate, t, decay);
    c.decided_scale = gradient_scale.const_data_ptr<float>();
    return c;
  };
  apply(gradients, {coefficients_of(true), coefficients_of(false), options_.seed, t});
}

void AdamW::update_on_host(SegmentState& segment, const at::Tensor& gradient, int64_t first,
                           const StateUpdate& update) {
  if (!segment.all_fp32()) return update_tiles(segment.arrays, gradient, segment.pieces, update, first);
  for (const Run& run : segment.runs) {
    const int64_t begin = std::max(run.begin, first), end = std::min(run.end, first + gradient.numel());
    if (begin >= end) continue;
    update_on_cpu(segment.numbers, segment.arrays.exp_avg.numbers(), segment.arrays.exp_avg_sq.numbers(),
                  gradient, first, begin, end, run.decay ? update.decayed : update.undecayed);
  }
}

void AdamW::apply(std::span<const at::Tensor> gradients, const StateUpdate& update) {
  if (staging_) return apply_on_host(gradients, update);
  for (size_t i = 0; i < segments_.size(); ++i) {
    SegmentState& segment = segments_[i];
    const at::Tensor& gradient = gradients[i];
    if (!cuda::on_card(gradient)) {
      update_on_host(segment, gradient, 0, update);
      write_weights(segment);
    } else if (!segment.all_fp32()) {  // these kernels have written the weights
      update_state_on_card(segment.arrays, gradient, segment.shard, segment.pieces, update);
    } else {
      for (const Run& run : segment.runs) {
        update_on_card(segment.numbers, segment.arrays.exp_avg.numbers(), segment.arrays.exp_avg_sq.numbers(),
                       gradient, segment.shard, run.begin, run.end,
                       run.decay ? update.decayed : update.undecayed);
      }
    }
  }
}

void AdamW::apply_on_host(std::span<const at::Tensor> gradients, const StateUpdate& update) {
  std::vector<HostStaging::Piece> pieces;
  std::vector<std::pair<size_t, int64_t>> places;  // segment, and first element of its share
  for (size_t i = 0; i < segments_.size(); ++i) {
    const int64_t numel = segments_[i].range.size();
    for (int64_t begin = 0; begin < numel; begin += options_.host_piece) {
      const int64_t end = std::min(numel, begin + options_.host_piece);
      pieces.push_back({gradients[i].slice(0, begin, end), segments_[i].shard.slice(0, begin, end)});
      places.emplace_back(i, begin);
    }
  }
  staging_->run(pieces, [&](size_t piece, const at::Tensor& gradient, const at::Tensor& weights) {
    const auto [i, begin] = places[piece];
    update_on_host(segments_[i], gradient, begin, update);
    round_weights(segments_[i].numbers.slice(0, begin, begin + weights.numel()), weights);
  });
}

void AdamW::update(const ParameterBuffers& gradients, double gradient_scale, double learning_rate,
                   int64_t t) {
  update(shards_of(gradients, owner_), gradient_scale, learning_rate, t);
}

void AdamW::write_weights(const SegmentState& segment) {
  if (segment.numbers.is_alias_of(segment.shard)) return;
  const at::Device device = segment.numbers.device();
  if (device == segment.shard.device()) return round_weights(segment.numbers, segment.shard);
  // Rounded before it crosses to a card: half the bytes.
  const at::Tensor weights = at::empty(segment.shard.sizes(), segment.shard.options().device(device));
  round_weights(segment.numbers, weights);
  segment.shard.copy_(weights);
}

at::Tensor AdamW::part(std::string_view name, size_t tensor, const ElementRange& elements) const {
  const SegmentState& segment = segments_[weights_.table().tensors()[tensor].segment];
  const int64_t begin = weights_.offset(tensor) + elements.begin - segment.range.begin;
  TORCH_CHECK(begin >= 0 && begin + elements.size() <= segment.range.size(), "elements of another share");
  return segment.array(name).values(begin, begin + elements.size());
}

at::Tensor AdamW::part(std::string_view name, int segment) const {
  return segments_[segment].array(name).values(0, segments_[segment].range.size());
}

at::Tensor AdamW::stored(const StoredPart& part, size_t tensor, const ElementRange& elements) const {
  const SegmentState& segment = segments_[weights_.table().tensors()[tensor].segment];
  const int64_t begin = weights_.offset(tensor) + elements.begin - segment.range.begin;
  TORCH_CHECK(begin >= 0 && begin + elements.size() <= segment.range.size(), "elements of another share");
  const StateArray& array = segment.array(part.part);
  return part.scales ? array.stored_scales(begin, begin + elements.size())
                     : array.stored(begin, begin + elements.size());
}

void AdamW::fill(std::span<const std::string_view> parts, const PartReader& read) {
  for (SegmentState& segment : segments_) {
    for (int64_t begin = 0; begin < segment.range.size(); begin += kFillPiece) {
      const int64_t end = std::min(segment.range.size(), begin + kFillPiece);
      for (const std::string_view part : parts) {
        const at::Tensor values = at::zeros({end - begin}, at::kFloat);
        for (const StatePiece& piece : segment.pieces) {
          const int64_t from = std::max(begin, piece.begin()), to = std::min(end, piece.end());
          if (from >= to) continue;
          const int64_t first = piece.where.elements.begin + from - piece.begin();
          read(part, piece.where.tensor, {first, first + to - from},
               values.slice(0, from - begin, to - begin));
        }
        StateArray array = segment.array(part);  // of the same memory
        array.set(begin, array.device().is_cpu() ? values : values.to(array.device()));
      }
    }
  }
  for (const SegmentState& segment : segments_) write_weights(segment);
}

}  // namespace satune
