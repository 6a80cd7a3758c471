// SwiGLU, RoPE, the embedding's gradient and the offsets of documents.
#include <numeric>

#include "model/ops/cuda_kernels.h"
#include "tests/kernels/kernel_fixtures.h"

namespace satune {
namespace {

using namespace testing;

template <typename T>
class ElementwiseKernels : public ::testing::Test {};
TYPED_TEST_SUITE(ElementwiseKernels, AllElements, ElementName);

template <typename T>
std::vector<double> rounded_wave(size_t count, double salt, double size) {
  std::vector<double> values = wave(count, salt, size);
  for (double& value : values) value = rounded<T>(value);
  return values;
}

TYPED_TEST(ElementwiseKernels, Swiglu) {
  using T = TypeParam;
  for (const size_t ffn : {5, 16, 2056}) {
    constexpr size_t kRows = 3;
    const auto gate_up = rounded_wave<T>(kRows * 2 * ffn, 1, 6), d_act = rounded_wave<T>(kRows * ffn, 2, 1.7);
    const auto rows = static_cast<int64_t>(kRows), width = static_cast<int64_t>(ffn);
    const auto act = in_any_order(2, [&](size_t shifts) {
      Array<T> in(gate_up, shift_of(shifts, 0)), out(std::vector<double>(kRows * ffn), shift_of(shifts, 1));
      auto parts = unwritten_parts(cuda::swiglu_largest_parts(kElement<T>, rows, width));
      cuda::swiglu_forward(kElement<T>, in.data(), out.data(), wanted<T>(parts), rows, width, nullptr);
      expect_largest<T>(parts, out.values());
      return out.values();
    });
    const auto d_gate_up = in_any_order(3, [&](size_t shifts) {
      Array<T> d(d_act, shift_of(shifts, 0)), in(gate_up, shift_of(shifts, 1));
      Array<T> out(std::vector<double>(gate_up.size()), shift_of(shifts, 2));
      auto parts = unwritten_parts(cuda::swiglu_largest_parts(kElement<T>, rows, width));
      cuda::swiglu_backward(kElement<T>, d.data(), in.data(), out.data(), wanted<T>(parts), rows, width,
                            nullptr);
      expect_largest<T>(parts, out.values());
      return out.values();
    });
    std::vector<double> expected(kRows * ffn), gradient(gate_up.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      const size_t at = i / ffn * 2 * ffn + i % ffn;
      const double gate = gate_up[at], up = gate_up[at + ffn], sigmoid = 1 / (1 + std::exp(-gate));
      expected[i] = gate * sigmoid * up;
      gradient[at] = d_act[i] * up * sigmoid * (1 + gate * (1 - sigmoid));
      gradient[at + ffn] = d_act[i] * gate * sigmoid;
    }
    expect_close<T>(act, expected, "act");
    expect_close<T>(d_gate_up, gradient, "d_gate_up");
  }
}

// With parts to write, blocks are few and each goes through several rows.
TEST(Swiglu, LargestOfMoreRowsThanBlocks) {
  using T = __nv_bfloat16;
  constexpr int64_t kRows = 2500, kFfn = 8;
  const auto gate_up = rounded_wave<T>(kRows * 2 * kFfn, 1, 6), d_act = rounded_wave<T>(kRows * kFfn, 2, 1.7);
  Array<T> in(gate_up), d(d_act), act(d_act), alone(d_act), d_gate_up(gate_up), d_alone(gate_up);
  auto parts = unwritten_parts(cuda::swiglu_largest_parts(kElement<T>, kRows, kFfn));
  EXPECT_LT(parts.size(), static_cast<size_t>(kRows));
  cuda::swiglu_forward(kElement<T>, in.data(), act.data(), parts.data(), kRows, kFfn, nullptr);
  cuda::swiglu_forward(kElement<T>, in.data(), alone.data(), nullptr, kRows, kFfn, nullptr);
  EXPECT_EQ(act.values(), alone.values());
  expect_largest<T>(parts, act.values());
  cuda::swiglu_backward(kElement<T>, d.data(), in.data(), d_gate_up.data(), parts.data(), kRows, kFfn,
                        nullptr);
  cuda::swiglu_backward(kElement<T>, d.data(), in.data(), d_alone.data(), nullptr, kRows, kFfn, nullptr);
  EXPECT_EQ(d_gate_up.values(), d_alone.values());
  expect_largest<T>(parts, d_gate_up.values());
}

TYPED_TEST(ElementwiseKernels, SwigluOfExtremeGatesIsFinite) {
  using T = TypeParam;
  // silu(-88) leaves fp32's normal range, exp(100) the whole; 60000 is about fp16's largest.
  const std::vector<double> gates = {-60000, -100, -88, -30, 30, 88, 100, 60000};
  std::vector<double> gate_up = gates;
  append(gate_up, std::vector<double>(8, 1));
  Array<T> in(gate_up), act(std::vector<double>(8)), d_act(std::vector<double>(8, 1)), d(gate_up);
  cuda::swiglu_forward(kElement<T>, in.data(), act.data(), nullptr, 1, 8, nullptr);
  cuda::swiglu_backward(kElement<T>, d_act.data(), in.data(), d.data(), nullptr, 1, 8, nullptr);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(act[i], gates[i] > 0 ? rounded<T>(gates[i]) : 0, 1e-10) << gates[i];
    EXPECT_NEAR(d[i], gates[i] > 0 ? 1 : 0, 1e-10) << gates[i];
    EXPECT_TRUE(std::isfinite(d[8 + i])) << gates[i];
  }
}

TYPED_TEST(ElementwiseKernels, RopeTurnsHeadsOfARowByItsPosition) {
  using T = TypeParam;
  using A = cuda::wide_t<T>;
  struct Case {
    size_t heads, half;
  };
  for (const auto& [heads, half] : {Case{1, 1}, Case{5, 16}, Case{40, 64}, Case{3, 6}}) {
    // Behind the heads that turn, each row holds one that does not.
    constexpr size_t kRows = 4, kPositions = 9;
    const size_t stride = (heads + 1) * 2 * half;
    const auto x = rounded_wave<T>(kRows * stride, 1, 1.7);
    const std::vector<int64_t> positions = {0, 3, 8, 3};
    std::vector<double> cos(kPositions * half), sin(kPositions * half);
    for (size_t i = 0; i < cos.size(); ++i) {
      const double angle = static_cast<double>(i / half) / (1.0 + static_cast<double>(i % half));
      cos[i] = rounded<A>(std::cos(angle));
      sin[i] = rounded<A>(std::sin(angle));
    }
    for (const int sign : {1, -1}) {
      const auto found = in_any_order(3, [&](size_t shifts) {
        Array<T> values(x, shift_of(shifts, 0));
        Array<A> cos_table(cos, shift_of(shifts, 1)), sin_table(sin, shift_of(shifts, 2));
        cuda::rope_apply(kElement<T>, values.data(), static_cast<int64_t>(stride), positions.data(),
                         cos_table.data(), sin_table.data(), kRows, static_cast<int64_t>(heads),
                         static_cast<int64_t>(2 * half), sign, nullptr);
        return values.values();
      });
      std::vector<double> expected = x;
      for (size_t row = 0; row < kRows; ++row) {
        for (size_t i = 0; i < heads * half; ++i) {
          const size_t low = row * stride + i / half * 2 * half + i % half, high = low + half;
          const size_t angle = static_cast<size_t>(positions[row]) * half + i % half;
          expected[low] = x[low] * cos[angle] - x[high] * sign * sin[angle];
          expected[high] = x[high] * cos[angle] + x[low] * sign * sin[angle];
        }
        for (size_t i = heads * 2 * half; i < stride; ++i) {
          ASSERT_EQ(found[row * stride + i], x[row * stride + i]) << "a head that was not asked for";
        }
      }
      expect_close<T>(found, expected, "x");
    }
  }
}

/// Adds the rows of `d_out` to a gradient of element type G, as model/ops/embedding.cpp calls the kernel.
template <typename T, typename G>
std::vector<double> run_embedding(const std::vector<double>& d_out, const std::vector<int64_t>& tokens,
                                  size_t vocabulary, double before, size_t shifts) {
  const size_t width = d_out.size() / tokens.size();
  std::vector<int64_t> places(tokens.size()), sorted;
  std::iota(places.begin(), places.end(), 0);
  std::stable_sort(places.begin(), places.end(), [&](int64_t a, int64_t b) { return tokens[a] < tokens[b]; });
  for (const int64_t place : places) sorted.push_back(tokens[static_cast<size_t>(place)]);
  Array<T> rows(d_out, shift_of(shifts, 0));
  Array<G> d_weight(std::vector<double>(vocabulary * width, before), shift_of(shifts, 1));
  cuda::embedding_backward(kElement<T>, rows.data(), sorted.data(), places.data(), kElement<G>,
                           d_weight.data(), static_cast<int64_t>(tokens.size()), static_cast<int64_t>(width),
                           nullptr);
  return d_weight.values();
}

TYPED_TEST(ElementwiseKernels, EmbeddingAddsATokensRowsInTheirOrder) {
  using T = TypeParam;
  using A = cuda::wide_t<T>;
  constexpr size_t kVocabulary = 7;
  // 5 comes once, 2 and 6 more often than a thread reads ahead, 0 and 3 never.
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < 45; ++i)
    tokens.push_back(i == 20 ? 5 : i % 3 == 0 ? 6 : i % 7 == 1 ? 1 : i % 5 == 0 ? 4 : 2);
  for (const size_t width : {3, 24, 1040}) {
    const auto d_out = rounded_wave<T>(tokens.size() * width, 1, 1.7);
    // The bits of a sum one after another in the statistics' type.
    std::vector<A> sums(kVocabulary * width);
    for (size_t i = 0; i < tokens.size(); ++i) {
      for (size_t c = 0; c < width; ++c) {
        sums[static_cast<size_t>(tokens[i]) * width + c] += static_cast<A>(d_out[i * width + c]);
      }
    }
    std::vector<double> narrow, wide;
    for (const A sum : sums) {
      narrow.push_back(rounded<T>(sum));
      wide.push_back(static_cast<A>(A(0.25) + sum));
    }
    EXPECT_EQ(
        in_any_order(
            2, [&](size_t shifts) { return run_embedding<T, T>(d_out, tokens, kVocabulary, 0, shifts); }),
        narrow);
    EXPECT_EQ((run_embedding<T, A>(d_out, tokens, kVocabulary, 0.25, 0)), wide);
  }
}

TEST(EmbeddingKernel, RefusesAGradientOfATypeItWasNotBuiltFor) {
  EXPECT_THROW((run_embedding<float, __half>({1, 2}, {0, 0}, 1, 0, 0)), std::runtime_error);
}

TEST(DocumentOffsets, OfEveryArrayAndOfSlotsThatAreLeft) {
  // More slots than a block has threads, and offsets that 32 bits do not hold.
  const std::vector<int32_t> starts = {0, 7, 8, 2'000'000'000};
  constexpr int64_t kDocuments = 3, kSlots = 1024;
  const std::vector<int64_t> rows = {6144, 1, 4096};
  cuda::RowStrides strides;
  strides.count = static_cast<int>(rows.size());
  std::copy(rows.begin(), rows.end(), strides.elements);
  std::vector<int64_t> offsets(rows.size() * cuda::offsets_pitch(kSlots), -1);
  std::vector<int32_t> lengths(kSlots, -1);
  cuda::document_offsets(starts.data(), kDocuments, kSlots, strides, offsets.data(), lengths.data(), nullptr);
  for (int64_t slot = 0; slot <= kSlots; ++slot) {
    const int64_t begin = starts[static_cast<size_t>(std::min(slot, kDocuments))];
    for (size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(offsets[i * cuda::offsets_pitch(kSlots) + static_cast<size_t>(slot)], begin * rows[i])
          << slot;
    if (slot == kSlots) continue;
    const auto at = static_cast<size_t>(slot);
    ASSERT_EQ(lengths[at], slot < kDocuments ? starts[at + 1] - starts[at] : 0) << slot;
  }
}

}  // namespace
}  // namespace satune
