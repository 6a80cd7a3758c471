// Attention on the CPU at the borders of its blocks, for every type, way of dealing out heads, and
// instruction set, against the materialised reference in fp64.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <string>
#include <vector>

#include "model/ops/attention.h"
#include "model/ops/attention_kernels.h"
#include "tests/model/attention_variant.h"
#include "tests/model/models.h"

namespace satune {
namespace {

using testing::relative_difference;

struct AttentionShape {
  std::vector<int64_t> lengths;
  int64_t heads, kv, head_dim;
};

std::vector<int64_t> starts_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> starts{0};
  for (const int64_t length : lengths) starts.push_back(starts.back() + length);
  return starts;
}

struct AttentionInputs {
  at::Tensor q, k, v, d_out;

  AttentionInputs to(at::ScalarType type) const {
    return {q.to(type), k.to(type), v.to(type), d_out.to(type)};
  }
  AttentionInputs rows(int64_t start, int64_t count) const {
    const auto part = [&](const at::Tensor& x) { return x.narrow(0, start, count).contiguous(); };
    return {part(q), part(k), part(v), part(d_out)};
  }
};

AttentionInputs inputs_of(const AttentionShape& shape, at::ScalarType type) {
  const at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(11);
  const int64_t tokens = starts_of(shape.lengths).back();
  const auto noise = [&](int64_t heads) {
    return at::randn({tokens, heads, shape.head_dim}, generator, at::kFloat).to(type);
  };
  return {noise(shape.heads), noise(shape.kv), noise(shape.kv), noise(shape.heads)};
}

/// Output, d_q, d_k, d_v.
using AttentionResults = std::array<at::Tensor, 4>;

AttentionResults attend(const AttentionInputs& x, const std::vector<int64_t>& starts,
                        AttentionKernel kernel = AttentionKernel::kFlash) {
  AttentionOptions options;
  options.choice.kernel = kernel;
  const AttentionOut out = attention_forward(x.q, x.k, x.v, starts, options);
  const auto unwritten = [](const at::Tensor& like) {
    return at::full(like.sizes(), std::numeric_limits<double>::quiet_NaN(), like.options());
  };
  AttentionResults results{out.out_NHD, unwritten(x.q), unwritten(x.k), unwritten(x.v)};
  attention_backward(x.d_out, x.q, x.k, x.v, out, starts, results[1], results[2], results[3]);
  return results;
}

AttentionResults reference(const AttentionInputs& x, const std::vector<int64_t>& starts) {
  return attend(x.to(at::kDouble), starts, AttentionKernel::kEager);
}

/// What is left of sums of a few hundred terms: in fp32, and with results (and for bf16 the weights of
/// values, too) rounded to 16 bits.
double tolerance_of(at::ScalarType type) {
  if (type == at::kDouble) return 1e-13;
  if (type == at::kFloat) return 1e-6;
  return type == at::kHalf ? 1e-3 : 8e-3;
}

void expect_close(const AttentionResults& found, const AttentionResults& expected, at::ScalarType type) {
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LT(relative_difference(found[i], expected[i]), tolerance_of(type)) << toString(type) << " " << i;
  }
}

class AttentionBlocks : public ::testing::TestWithParam<AttentionShape> {};

TEST_P(AttentionBlocks, FollowTheReference) {
  const std::vector<int64_t> starts = starts_of(GetParam().lengths);
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
    const AttentionInputs x = inputs_of(GetParam(), type);
    expect_close(attend(x, starts), reference(x, starts), type);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionBlocks,
                         ::testing::Values(AttentionShape{{1}, 2, 1, 8},
                                           AttentionShape{{63, 64, 65}, 4, 2, 64},
                                           AttentionShape{{257}, 3, 1, 128},
                                           AttentionShape{{300, 2, 31}, 6, 2, 20},
                                           AttentionShape{{513}, 2, 2, 48}, AttentionShape{{130}, 4, 4, 80},
                                           AttentionShape{std::vector<int64_t>(30, 17), 4, 2, 32},
                                           AttentionShape{{321}, 2, 1, 256}, AttentionShape{{96}, 3, 3, 7}));

/// Restores the number of threads.
class WithThreads {
 public:
  explicit WithThreads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~WithThreads() { at::set_num_threads(before_); }
  WithThreads(const WithThreads&) = delete;
  WithThreads& operator=(const WithThreads&) = delete;

 private:
  int before_;
};

TEST(AttentionOnCpu, ThreadsDoNotMatter) {
  const AttentionShape shape{{400, 77}, 8, 2, 64};
  const std::vector<int64_t> starts = starts_of(shape.lengths);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const AttentionInputs x = inputs_of(shape, type);
    AttentionResults expected;
    for (const int threads : {1, 2, 3, 8}) {  // of 8 each takes query heads, of fewer key/value heads
      const WithThreads restored(threads);
      const AttentionResults found = attend(x, starts);
      if (threads == 1) expected = found;
      for (size_t i = 0; i < found.size(); ++i)
        EXPECT_TRUE(at::equal(found[i], expected[i])) << threads << " threads, " << i;
    }
  }
}

TEST(AttentionOnCpu, NeighboursDoNotMatter) {
  const AttentionShape shape{{90, 333, 5}, 4, 2, 64};
  const std::vector<int64_t> starts = starts_of(shape.lengths);
  AttentionInputs x = inputs_of(shape, at::kBFloat16);
  x.v.narrow(0, 0, 90).fill_(std::numeric_limits<double>::quiet_NaN());
  const AttentionResults together = attend(x, starts), alone = attend(x.rows(90, 333), {0, 333});
  for (size_t i = 0; i < alone.size(); ++i) {
    EXPECT_TRUE(at::equal(together[i].narrow(0, 90, 333), alone[i])) << i;
    EXPECT_TRUE(at::isfinite(together[i].narrow(0, 423, 5)).all().item<bool>()) << i;
  }
  EXPECT_TRUE(at::isnan(together[0].narrow(0, 0, 90)).all().item<bool>());
}

TEST(AttentionOnCpu, ReadsStridedRowsAndWritesThem) {
  const AttentionShape shape{{150}, 6, 2, 64};
  const AttentionInputs x = inputs_of(shape, at::kFloat);
  const AttentionInputs fused{at::cat({x.q, x.k, x.v}, 1), {}, {}, {}};
  const AttentionInputs views{fused.q.narrow(1, 0, 6), fused.q.narrow(1, 6, 2), fused.q.narrow(1, 8, 2),
                              x.d_out};
  const std::vector<int64_t> starts{0, 150};
  const AttentionResults expected = attend(x, starts);
  const AttentionOut out = attention_forward(views.q, views.k, views.v, starts);
  const at::Tensor d_fused = at::empty_like(fused.q);
  attention_backward(x.d_out, views.q, views.k, views.v, out, starts, d_fused.narrow(1, 0, 6),
                     d_fused.narrow(1, 6, 2), d_fused.narrow(1, 8, 2));
  EXPECT_TRUE(at::equal(out.out_NHD, expected[0]));
  EXPECT_TRUE(at::equal(d_fused, at::cat({expected[1], expected[2], expected[3]}, 1)));
  // Heads that do not stand side by side.
  const AttentionInputs apart{
      x.q.transpose(0, 1).contiguous().transpose(0, 1), x.k.transpose(0, 1).contiguous().transpose(0, 1),
      x.v.transpose(0, 1).contiguous().transpose(0, 1), x.d_out.transpose(0, 1).contiguous().transpose(0, 1)};
  const AttentionResults same = attend({apart.q, apart.k, apart.v, apart.d_out}, starts);
  for (size_t i = 0; i < same.size(); ++i) EXPECT_TRUE(at::equal(same[i], expected[i])) << i;
}

TEST(AttentionOnCpu, ValuesAlone) {
  const AttentionShape shape{{200, 9}, 4, 2, 32};
  const std::vector<int64_t> starts = starts_of(shape.lengths);
  for (const int threads : {1, 8}) {
    const WithThreads restored(threads);
    const AttentionInputs x = inputs_of(shape, at::kBFloat16);
    const AttentionResults expected = attend(x, starts);
    const AttentionOut out = attention_forward(x.q, x.k, x.v, starts);
    const at::Tensor d_v = at::empty_like(x.v);
    attention_backward(x.d_out, x.q, x.k, x.v, out, starts, {}, {}, d_v);
    EXPECT_TRUE(at::equal(d_v, expected[3]));
  }
}

TEST(AttentionOnCpu, LargeScoresNeitherOverflowNorVanish) {
  const AttentionShape shape{{290}, 2, 1, 64};
  AttentionInputs x = inputs_of(shape, at::kFloat);
  x.q.mul_(40);  // scores of some hundreds: one key takes all
  const std::vector<int64_t> starts{0, 290};
  const AttentionResults found = attend(x, starts), expected = reference(x, starts);
  for (size_t i = 0; i < found.size(); ++i) EXPECT_LT(relative_difference(found[i], expected[i]), 1e-4) << i;
}

TEST(AttentionOnCpu, StaysInItsWorkspace) {
  constexpr std::byte kUntouched{0xa5};
  constexpr int64_t kGuard = 256;
  const auto check = [&]<typename T>(int64_t length, int64_t head_dim, at::ScalarType type) {
    const AttentionInputs x = inputs_of({{length}, 2, 1, head_dim}, type);
    const auto data = [](const at::Tensor& of) { return of.const_data_ptr<T>(); };
    const kernels::HeadGroup<T> group{
        length, head_dim, 2, {data(x.q), 2 * head_dim}, {data(x.k), head_dim}, {data(x.v), head_dim}};
    const at::Tensor out = at::empty_like(x.q), d_q = at::empty_like(x.q);
    const int64_t sums = length * kernels::attention_columns<T>(head_dim);
    std::vector<kernels::accumulate_t<T>> log_sum(2 * length), d_k(sums), d_v(sums);
    const auto guarded = [&](int64_t bytes, const auto& f) {
      std::vector<std::byte> memory(bytes + kGuard, kUntouched);
      f(memory.data());
      for (int64_t i = bytes; i < bytes + kGuard; ++i) ASSERT_EQ(memory[i], kUntouched) << i - bytes;
    };
    guarded(kernels::attention_forward_workspace<T>(length, head_dim), [&](std::byte* memory) {
      kernels::attention_forward<T>(group, 0, length, {out.mutable_data_ptr<T>(), 2 * head_dim},
                                    log_sum.data(), length, memory);
    });
    const kernels::HeadGroupGradient<T> gradient{{data(x.d_out), 2 * head_dim},
                                                 {data(out), 2 * head_dim},
                                                 log_sum.data(),
                                                 length,
                                                 {d_q.mutable_data_ptr<T>(), 2 * head_dim}};
    guarded(kernels::attention_backward_workspace<T>(length, head_dim), [&](std::byte* memory) {
      kernels::attention_backward<T>(group, gradient, 0, 2, d_k.data(), d_v.data(), memory);
    });
  };
  for (const int64_t length : {1, 15, 64, 65, 255, 257}) {
    for (const int64_t head_dim : {7, 16, 64}) {
      check.operator()<float>(length, head_dim, at::kFloat);
      check.operator()<double>(length, head_dim, at::kDouble);
      check.operator()<c10::BFloat16>(length, head_dim, at::kBFloat16);
    }
  }
}

TEST(AttentionOnCpu, BuffersThatAreToldAreTaken) {
  // 2 documents, 2 key/value heads: enough for 2 threads, not for 8.
  const int64_t sums = int64_t{4} * 100 * 64;
  const auto buffers = [](int64_t threads) {
    return attention_backward_buffers(at::kFloat, 2, 100, 8, 2, 64, threads);
  };
  const int64_t kernel = kernels::attention_backward_workspace<float>(100, 64);
  EXPECT_EQ(buffers(2), std::vector<int64_t>(2, kernel + 2 * sums));
  std::vector<int64_t> alone(8, kernel);
  alone.insert(alone.end(), 2, 2 * 8 * sums);
  EXPECT_EQ(buffers(8), alone);
}

#ifdef SATUNE_ATTENTION_VARIANTS
struct AttentionVariant {
  const char* name;
  bool here;
  void (*in_float)(const AttentionArrays<float>&);
  void (*in_bf16)(const AttentionArrays<c10::BFloat16>&);
};

TEST(AttentionOnCpu, EveryInstructionSetFollowsTheReference) {
  const AttentionVariant variants[] = {
      {"baseline", true, baseline::attend, baseline::attend},
      {"avx2",
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"),
       avx2::attend, avx2::attend},
      {"avx512",
       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"),
       avx512::attend, avx512::attend},
      {"avx512_bf16", __builtin_cpu_supports("avx512bf16") != 0, avx512_bf16::attend, avx512_bf16::attend}};
  for (const AttentionVariant& variant : variants) {
    if (!variant.here) continue;
    SCOPED_TRACE(variant.name);
    for (const int64_t head_dim : {20, 64}) {
      for (const int64_t length : {5, 64, 290}) {
        const auto check = [&]<typename T>(at::ScalarType type, const auto& attend_as) {
          const AttentionInputs x = inputs_of({{length}, 3, 1, head_dim}, type);
          const AttentionResults found{at::empty_like(x.q), at::empty_like(x.q), at::empty_like(x.k),
                                       at::empty_like(x.v)};
          const auto data = [](const at::Tensor& of) { return of.mutable_data_ptr<T>(); };
          attend_as(AttentionArrays<T>{length, 3, head_dim, data(x.q), data(x.k), data(x.v), data(x.d_out),
                                       data(found[0]), data(found[1]), data(found[2]), data(found[3])});
          expect_close(found, reference(x, {0, length}), type);
        };
        check.operator()<float>(at::kFloat, variant.in_float);
        check.operator()<c10::BFloat16>(at::kBFloat16, variant.in_bf16);
      }
    }
  }
}
#endif

}  // namespace
}  // namespace satune
