#include "trainer/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "trainer/adamw_kernels.h"

namespace satune {
namespace {

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

void update_on_cpu(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                   const at::Tensor& gradient, int64_t begin, int64_t end, const AdamWCoefficients& c) {
  float* p = master.data_ptr<float>();
  float* m = exp_avg.data_ptr<float>();
  float* v = exp_avg_sq.data_ptr<float>();
  const void* g = gradient.const_data_ptr();
  const bool half_width = gradient.scalar_type() == at::kBFloat16;
  for_chunks(begin, end, [&](int64_t from, int64_t to) {
    if (half_width) {
      adamw_update_bf16(p + from, m + from, v + from, static_cast<const uint16_t*>(g) + from, to - from, c);
    } else {
      adamw_update_f32(p + from, m + from, v + from, static_cast<const float*>(g) + from, to - from, c);
    }
  });
}

void update_on_device(const at::Tensor& master, const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq,
                      const at::Tensor& gradient, int64_t begin, int64_t end, const AdamWCoefficients& c) {
  at::Tensor p = master.slice(0, begin, end), m = exp_avg.slice(0, begin, end);
  at::Tensor v = exp_avg_sq.slice(0, begin, end);
  const at::Tensor g = gradient.slice(0, begin, end).to(at::kFloat).mul(c.gradient_scale);
  p.mul_(c.decay);
  m.lerp_(g, c.one_minus_beta1);
  v.mul_(c.beta2).addcmul_(g, g, c.one_minus_beta2);
  p.addcdiv_(m, v.sqrt().div_(c.bias_correction2_sqrt).add_(c.epsilon), -c.step_size);
}

void round_weights(const at::Tensor& master, const at::Tensor& weights) {
  if (!weights.is_cpu() || weights.scalar_type() != at::kBFloat16) {
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
      weight_decay(settings.weight_decay) {}

AdamW::AdamW(ParameterBuffers& weights, const AdamWOptions& options, const World& world)
    : weights_(weights), options_(options), world_(world), segments_(weights.num_segments()) {
  for (int i = 0; i < weights.num_segments(); ++i) {
    SegmentState& segment = segments_[i];
    segment.range = shard_range(weights.flat(i).numel(), world);
    const at::Tensor shard = weight_shard(i);
    segment.master = shard.scalar_type() == at::kFloat ? shard : shard.to(at::kFloat);
    segment.exp_avg = at::zeros_like(segment.master);
    segment.exp_avg_sq = at::zeros_like(segment.master);
    segment.runs = decay_runs(weights, i, world);
  }
}

at::Tensor AdamW::weight_shard(int segment) const {
  const ElementRange range = segments_[segment].range;
  return weights_.flat(segment).slice(0, range.begin, range.end);
}

std::vector<AdamW::Run> AdamW::decay_runs(const ParameterBuffers& weights, int segment, const World& world) {
  std::vector<Run> runs;
  for (const ShardPiece& piece : shard_pieces(weights, segment, world)) {
    const bool decay = weights.table().tensors()[piece.tensor].decay;
    const int64_t begin = piece.shard_offset, end = begin + piece.elements.size();
    if (!runs.empty() && runs.back().end == begin && runs.back().decay == decay) {
      runs.back().end = end;
    } else {
      runs.push_back({begin, end, decay});
    }
  }
  return runs;
}

void AdamW::update(const ParameterBuffers& gradients, double gradient_scale, double learning_rate,
                   int64_t t) {
  for (size_t i = 0; i < segments_.size(); ++i) {
    const SegmentState& segment = segments_[i];
    const at::Tensor gradient =
        gradients.flat(static_cast<int>(i)).slice(0, segment.range.begin, segment.range.end);
    const auto apply = gradient.is_cpu() ? update_on_cpu : update_on_device;
    for (const Run& run : segment.runs) {
      apply(segment.master, segment.exp_avg, segment.exp_avg_sq, gradient, run.begin, run.end,
            coefficients(options_, gradient_scale, learning_rate, t, run.decay));
    }
  }
  write_weights();
}

void AdamW::write_weights() {
  if (weights_.type() == at::kFloat) return;
  for (size_t i = 0; i < segments_.size(); ++i) {
    round_weights(segments_[i].master, weight_shard(static_cast<int>(i)));
  }
}

at::Tensor AdamW::master(size_t tensor) const {
  const TensorInfo& info = weights_.table().tensors()[tensor];
  const SegmentState& segment = segments_[info.segment];
  const int64_t begin = weights_.offset(tensor) - segment.range.begin;
  return segment.master.slice(0, begin, begin + info.numel()).view(info.shape);
}

const at::Tensor& AdamW::part(std::string_view name, int segment) const {
  const SegmentState& state = segments_[segment];
  if (name == "master") return state.master;
  if (name == "exp_avg") return state.exp_avg;
  TORCH_CHECK(name == "exp_avg_sq", "no optimizer state named ", name);
  return state.exp_avg_sq;
}

}  // namespace satune
