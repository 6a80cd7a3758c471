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

void round_weights(const at::Tensor& master, const at::Tensor& weights) {
  if (!master.is_cpu() || weights.scalar_type() != at::kBFloat16) {
    weights.copy_(master);
    return;
  }
  // Rounded before it crosses to a card: half the bytes.
  const at::Tensor rounded = weights.is_cpu() ? weights : at::empty(weights.sizes(), at::kBFloat16);
  const float* from = master.const_data_ptr<float>();
  auto* to = static_cast<uint16_t*>(rounded.mutable_data_ptr());
  for_chunks(0, master.numel(),
             [&](int64_t begin, int64_t end) { round_to_bf16(from + begin, to + begin, end - begin); });
  if (!weights.is_cpu()) weights.copy_(rounded);
}

}  // namespace

AdamWOptions::AdamWOptions(const Settings& settings)
    : beta1(settings.adam_beta1),
      beta2(settings.adam_beta2),
      epsilon(settings.adam_epsilon),
      weight_decay(settings.weight_decay) {}

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
    segment.master = segment.shard.to(at::TensorOptions(state_device).dtype(at::kFloat));
    segment.exp_avg = at::zeros_like(segment.master);
    segment.exp_avg_sq = at::zeros_like(segment.master);
    segment.runs = decay_runs(weights, i, owner);
  }
}

AdamW::AdamW(const ParameterBuffers& weights, const AdamWOptions& options, const World& owner)
    : AdamW(weights, shards_of(weights, owner), options, owner, weights.flat(0).device()) {}

std::vector<AdamW::Run> AdamW::decay_runs(const ParameterBuffers& weights, int segment, const World& owner) {
  std::vector<Run> runs;
  for (const ShardPiece& piece : shard_pieces(weights, segment, owner)) {
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

void AdamW::update(std::span<const at::Tensor> gradients, double gradient_scale, double learning_rate,
                   int64_t t) {
  for (size_t i = 0; i < segments_.size(); ++i) {
    const SegmentState& segment = segments_[i];
    const at::Tensor gradient = gradients[i].to(segment.master.device());
    for (const Run& run : segment.runs) {
      const AdamWCoefficients c = coefficients(options_, gradient_scale, learning_rate, t, run.decay);
      if (cuda::on_card(gradient)) {
        update_on_card(segment.master, segment.exp_avg, segment.exp_avg_sq, gradient, segment.shard,
                       run.begin, run.end, c);
      } else {
        update_on_cpu(segment.master, segment.exp_avg, segment.exp_avg_sq, gradient, run.begin, run.end, c);
      }
    }
  }
  if (!segments_.empty() && !cuda::on_card(segments_[0].master)) write_weights();
}

void AdamW::update(const ParameterBuffers& gradients, double gradient_scale, double learning_rate,
                   int64_t t) {
  update(shards_of(gradients, owner_), gradient_scale, learning_rate, t);
}

void AdamW::write_weights() {
  for (const SegmentState& segment : segments_) {
    if (!segment.master.is_alias_of(segment.shard)) round_weights(segment.master, segment.shard);
  }
}

at::Tensor AdamW::part(std::string_view name, size_t tensor, const ElementRange& elements) const {
  const int segment = weights_.table().tensors()[tensor].segment;
  const ElementRange& owned = segments_[segment].range;
  const int64_t begin = weights_.offset(tensor) + elements.begin - owned.begin;
  TORCH_CHECK(begin >= 0 && begin + elements.size() <= owned.size(), "elements of another share");
  return part(name, segment).narrow(0, begin, elements.size());
}

const at::Tensor& AdamW::part(std::string_view name, int segment) const {
  const SegmentState& state = segments_[segment];
  if (name == "master") return state.master;
  if (name == "exp_avg") return state.exp_avg;
  TORCH_CHECK(name == "exp_avg_sq", "no optimizer state named ", name);
  return state.exp_avg_sq;
}

}  // namespace satune
