// Speed of the CPU ops beside what the machine can do: copying memory and an fp32 matrix product, measured in
// the same run. Each row shows bytes/s (what the op must read and write at least) or FLOP/s (its products).
// The shapes: "small", the quickstart's order of size, and "1b", a layer of Llama-3.2-1B over 512 tokens with
// its 128k-word head over 128 of them.
//
//   OMP_NUM_THREADS=2 build/release/ops_bench [--benchmark_filter=1b]
//
// A timing never fails anything.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <functional>
#include <string>

#include "model/files/model_config.h"
#include "model/ops/attention.h"
#include "model/ops/linear.h"
#include "model/ops/linear_cross_entropy.h"
#include "model/ops/rms_norm.h"
#include "model/ops/rope.h"
#include "model/ops/swiglu.h"
#include "trainer/adamw_kernels.h"

namespace satune {
namespace {

using benchmark::Counter;
using benchmark::State;

struct Shape {
  const char* name;
  int64_t tokens, head_tokens, hidden, ffn, heads, kv_heads, head_dim, vocabulary;

  int64_t query_size() const { return heads * head_dim; }
  /// Weights of one decoder layer.
  int64_t parameters() const {
    return hidden * (2 * query_size() + 2 * kv_heads * head_dim) + 3 * hidden * ffn;
  }
};

constexpr Shape kSmall{"small", 512, 512, 256, 688, 8, 4, 32, 2048};
constexpr Shape kLlama1b{"1b", 512, 128, 2048, 8192, 32, 8, 64, 128256};

/// An op over prepared operands: what a timed pass runs, and what it moves or computes.
struct Case {
  std::function<void()> pass;
  double bytes = 0, flops = 0;
};
using Prepare = Case (*)(const Shape& shape, at::ScalarType type);

at::Tensor noise(at::IntArrayRef sizes, at::ScalarType type) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(7);
  return at::randn(sizes, generator, at::kFloat).to(type);
}

double bytes_of(std::initializer_list<at::Tensor> tensors) {
  double bytes = 0;
  for (const at::Tensor& tensor : tensors) bytes += static_cast<double>(tensor.nbytes());
  return bytes;
}

Case copy_memory(const Shape&, at::ScalarType type) {
  const at::Tensor from = noise({int64_t{1} << 26}, type), to = at::empty_like(from);
  return {[=] { to.copy_(from); }, bytes_of({from, to})};
}

Case fp32_product(const Shape&, at::ScalarType) {
  const at::Tensor a = noise({1024, 1024}, at::kFloat), b = noise({1024, 1024}, at::kFloat);
  return {[=] { benchmark::DoNotOptimize(at::mm(a, b)); }, 0, 2.0 * 1024 * 1024 * 1024};
}

Case rms_norm_pass(const Shape& s, at::ScalarType type) {
  const at::Tensor x = noise({s.tokens, s.hidden}, type), w = noise({s.hidden}, type);
  return {[=] { benchmark::DoNotOptimize(rms_norm_forward(x, w, 1e-5)); }, bytes_of({x, x})};
}

Case rms_norm_gradient(const Shape& s, at::ScalarType type) {
  const at::Tensor x = noise({s.tokens, s.hidden}, type), w = noise({s.hidden}, type);
  const at::Tensor d_w = at::empty_like(w), rstd = rms_norm_forward(x, w, 1e-5).rstd_N;
  // d_y, x and the by-passing gradient in, d_x out.
  return {[=] { benchmark::DoNotOptimize(rms_norm_backward(x, x, w, rstd, x, d_w, false)); },
          bytes_of({x, x, x, x})};
}

Case rope_pass(const Shape& s, at::ScalarType type) {
  ModelConfig config;
  config.head_dim = s.head_dim;
  config.rope_theta = 500000;
  const RopeTable table = make_rope_table(config, s.tokens, type, at::kCPU);
  const at::Tensor x = noise({s.tokens, s.heads + s.kv_heads, s.head_dim}, type);
  const at::Tensor positions = at::arange(s.tokens, at::kLong);
  return {[=] { rope_apply(x, positions, table, false); }, bytes_of({x, x})};
}

Case swiglu_pass(const Shape& s, at::ScalarType type) {
  const at::Tensor gate_up = noise({s.tokens, 2 * s.ffn}, type);
  return {[=] { benchmark::DoNotOptimize(swiglu_forward(gate_up)); }, 1.5 * bytes_of({gate_up})};
}

Case swiglu_gradient(const Shape& s, at::ScalarType type) {
  const at::Tensor gate_up = noise({s.tokens, 2 * s.ffn}, type), d_act = noise({s.tokens, s.ffn}, type);
  return {[=] { benchmark::DoNotOptimize(swiglu_backward(d_act, gate_up)); },
          bytes_of({d_act, gate_up, gate_up})};
}

struct AttentionOperands {
  at::Tensor q, k, v, d_out, d_q, d_k, d_v;
  std::vector<int64_t> starts;

  AttentionOperands(const Shape& s, at::ScalarType type)
      : q(noise({s.tokens, s.heads, s.head_dim}, type)),
        k(noise({s.tokens, s.kv_heads, s.head_dim}, type)),
        v(noise({s.tokens, s.kv_heads, s.head_dim}, type)),
        d_out(noise(q.sizes(), type)),
        d_q(at::empty_like(q)),
        d_k(at::empty_like(k)),
        d_v(at::empty_like(v)),
        starts{0, s.tokens} {}
  /// One T x T product over all heads, halved by causality.
  double product_flops() const { return static_cast<double>(q.size(0)) * static_cast<double>(q.numel()); }
};

Case attention_pass(const Shape& s, at::ScalarType type) {
  const AttentionOperands a(s, type);
  return {[=] { benchmark::DoNotOptimize(attention_forward(a.q, a.k, a.v, a.starts)); }, 0,
          2 * a.product_flops()};
}

Case attention_gradient(const Shape& s, at::ScalarType type) {
  const AttentionOperands a(s, type);
  const AttentionOut out = attention_forward(a.q, a.k, a.v, a.starts);
  return {[=] { attention_backward(a.d_out, a.q, a.k, a.v, out, a.starts, a.d_q, a.d_k, a.d_v); }, 0,
          4 * a.product_flops()};
}

Case linear_pass(const Shape& s, at::ScalarType type) {
  const at::Tensor x = noise({s.tokens, s.hidden}, type), w = noise({2 * s.ffn, s.hidden}, type);
  return {[=] { benchmark::DoNotOptimize(linear_forward(x, w)); }, 0, 2.0 * s.tokens * s.hidden * 2 * s.ffn};
}

Case linear_gradients(const Shape& s, at::ScalarType type) {
  const at::Tensor x = noise({s.tokens, s.hidden}, type), w = noise({2 * s.ffn, s.hidden}, type);
  const at::Tensor d_y = noise({s.tokens, 2 * s.ffn}, type), d_w = at::empty_like(w);
  return {[=] {
            benchmark::DoNotOptimize(linear_backward_input(d_y, w));
            linear_backward_weight(d_y, x, d_w, false);
          },
          0, 4.0 * s.tokens * s.hidden * 2 * s.ffn};
}

Case decode_projection(const Shape& s, at::ScalarType type) {
  const at::Tensor x = noise({1, s.hidden}, type), w = noise({2 * s.ffn, s.hidden}, type);
  return {[=] { benchmark::DoNotOptimize(linear_forward(x, w)); }, bytes_of({w})};
}

Case head_pass_and_gradients(const Shape& s, at::ScalarType type) {
  const at::Tensor hidden = noise({s.head_tokens, s.hidden}, type);
  const at::Tensor w = noise({s.vocabulary, s.hidden}, type) * 0.02, d_w = at::empty_like(w);
  const Targets targets{at::arange(s.head_tokens, at::kLong), at::arange(s.head_tokens, at::kLong)};
  return {
      [=] { benchmark::DoNotOptimize(linear_cross_entropy_backward(hidden, w, targets, 1.0, d_w, false)); },
      0, 6.0 * s.head_tokens * s.hidden * s.vocabulary};
}

constexpr int64_t kElementsPerTask = int64_t{1} << 16;

Case adamw_update(const Shape& s, at::ScalarType type) {
  const int64_t n = s.parameters();
  const at::Tensor master = noise({n}, at::kFloat), m = at::zeros_like(master), v = at::zeros_like(master);
  const at::Tensor gradient = noise({n}, type);
  const AdamWCoefficients c{1, 0.9f, 0.999f, 0.1f, 0.001f, 1, 1e-5f, 0.03f, 1e-8f};
  const auto update = [=] {
    at::parallel_for(0, n, kElementsPerTask, [&](int64_t begin, int64_t end) {
      float* p = master.mutable_data_ptr<float>() + begin;
      float* first = m.mutable_data_ptr<float>() + begin;
      float* second = v.mutable_data_ptr<float>() + begin;
      if (type == at::kFloat) {
        adamw_update_f32(p, first, second, gradient.const_data_ptr<float>() + begin, end - begin, c);
      } else {
        const auto* g = static_cast<const uint16_t*>(gradient.const_data_ptr()) + begin;
        adamw_update_bf16(p, first, second, g, end - begin, c);
      }
    });
  };
  return {update, 2 * bytes_of({master, m, v}) + bytes_of({gradient})};
}

Case gradient_norm(const Shape& s, at::ScalarType type) {
  const at::Tensor gradient = noise({s.parameters()}, type);
  const auto sum = [=] {
    at::parallel_for(0, gradient.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      const double part =
          type == at::kFloat
              ? sum_of_squares_f32(gradient.const_data_ptr<float>() + begin, end - begin)
              : sum_of_squares_bf16(static_cast<const uint16_t*>(gradient.const_data_ptr()) + begin,
                                    end - begin);
      benchmark::DoNotOptimize(part);
    });
  };
  return {sum, bytes_of({gradient})};
}

Case bf16_rounding(const Shape& s, at::ScalarType) {
  const at::Tensor from = noise({s.parameters()}, at::kFloat), to = at::empty_like(from, at::kBFloat16);
  const auto round = [=] {
    at::parallel_for(0, from.numel(), kElementsPerTask, [&](int64_t begin, int64_t end) {
      round_to_bf16(from.const_data_ptr<float>() + begin,
                    static_cast<uint16_t*>(to.mutable_data_ptr()) + begin, end - begin);
    });
  };
  return {round, bytes_of({from, to})};
}

void run_case(State& state, Prepare prepare, const Shape& shape, at::ScalarType type) {
  const Case prepared = prepare(shape, type);
  prepared.pass();  // first touch of the outputs, and oneDNN's own preparations
  for (auto _ : state) prepared.pass();
  if (prepared.bytes > 0) state.SetBytesProcessed(static_cast<int64_t>(prepared.bytes) * state.iterations());
  if (prepared.flops > 0) {
    state.counters["FLOP/s"] = Counter(prepared.flops, Counter::kIsIterationInvariantRate);
  }
}

void add(const char* op, Prepare prepare, const Shape& shape, at::ScalarType type) {
  const std::string name = std::string(op) + "/" + shape.name + "/" + (type == at::kFloat ? "fp32" : "bf16");
  // UseRealTime: the work is LibTorch's threads', not the timing thread's.
  benchmark::RegisterBenchmark(name.c_str(), run_case, prepare, shape, type)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

void add_all() {
  constexpr std::pair<const char*, Prepare> kOps[] = {
      {"rms_norm_forward", rms_norm_pass},
      {"rms_norm_backward", rms_norm_gradient},
      {"rope", rope_pass},
      {"swiglu_forward", swiglu_pass},
      {"swiglu_backward", swiglu_gradient},
      {"attention_forward", attention_pass},
      {"attention_backward", attention_gradient},
      {"linear_forward", linear_pass},
      {"linear_backward", linear_gradients},
      {"linear_one_token", decode_projection},
      {"linear_cross_entropy", head_pass_and_gradients},
      {"adamw_update", adamw_update},
      {"gradient_norm", gradient_norm},
  };
  for (const Shape& shape : {kSmall, kLlama1b}) {
    add("copy_memory", copy_memory, shape, at::kFloat);
    add("product_1024", fp32_product, shape, at::kFloat);
    for (const auto& [name, prepare] : kOps) {
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) add(name, prepare, shape, type);
    }
    add("round_to_bf16", bf16_rounding, shape, at::kBFloat16);
  }
}

}  // namespace
}  // namespace satune

int main(int argc, char** argv) {
  satune::add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
