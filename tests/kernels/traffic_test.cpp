// What the kernels read and write against trainer/kernel_traffic.h, at shapes whose small arrays hardly
// count.
#include "tests/kernels/kernel_fixtures.h"
#include "trainer/cuda_kernels.h"
#include "trainer/kernel_traffic.h"

namespace satune {
namespace {

using namespace testing;
using T = __nv_bfloat16;
constexpr Element kBf16 = Element::kBFloat16;
constexpr int64_t kItem = sizeof(T);

/// Reads and writes of what is called, each within `extra` (relative) above the model and never below it.
template <typename F>
void expect_traffic(const traffic::Bytes& model, double extra, F&& call) {
  const emulation::Traffic before = emulation::traffic();
  call();
  const auto check = [&](int64_t moved, int64_t expected, const char* what) {
    EXPECT_GE(moved, expected) << what;
    EXPECT_LE(static_cast<double>(moved), static_cast<double>(expected) * (1 + extra)) << what;
  };
  check(emulation::traffic().read - before.read, model.read, "read");
  check(emulation::traffic().written - before.written, model.written, "written");
}

Array<T> array(int64_t count) {
  return Array<T>(wave(static_cast<size_t>(count), 1));
}
Array<float> floats(int64_t count) {
  return Array<float>(wave(static_cast<size_t>(count), 1, 0.1));
}

TEST(Traffic, Norms) {
  constexpr int64_t kRows = 6, kWidth = 1024;
  Array<T> x = array(kRows * kWidth), y = array(kRows * kWidth), weight = array(kWidth);
  Array<T> d_y = array(kRows * kWidth), d_x = array(kRows * kWidth);
  Array<float> rstd = floats(kRows);
  // The weight comes once a row, on a card from the cache.
  const traffic::Bytes forward = traffic::rms_norm_forward(kRows, kWidth, kItem);
  expect_traffic({2 * forward.read, forward.written}, 0.01, [&] {
    cuda::rms_norm_forward(kBf16, x.data(), weight.data(), y.data(), rstd.data(), nullptr, kRows, kWidth,
                           1e-5, nullptr);
  });
  for (const bool residual : {false, true}) {
    traffic::Bytes backward = traffic::rms_norm_backward(kRows, kWidth, kItem, residual);
    backward.read += kRows * kWidth * kItem;  // the weight, once a block
    expect_traffic(backward, 0.01, [&] {
      cuda::rms_norm_backward(kBf16, d_y.data(), x.data(), weight.data(), rstd.data(),
                              residual ? y.data() : nullptr, d_x.data(), nullptr, nullptr, {}, kRows, kWidth,
                              nullptr);
    });
  }
}

TEST(Traffic, ElementwiseOps) {
  constexpr int64_t kRows = 2, kFfn = 4096, kHeads = 40, kDim = 64;
  Array<T> gate_up = array(kRows * 2 * kFfn), act = array(kRows * kFfn), d = array(kRows * 2 * kFfn);
  expect_traffic(traffic::swiglu_forward(kRows, kFfn, kItem), 0, [&] {
    cuda::swiglu_forward(kBf16, gate_up.data(), act.data(), nullptr, kRows, kFfn, nullptr);
  });
  expect_traffic(traffic::swiglu_backward(kRows, kFfn, kItem), 0, [&] {
    cuda::swiglu_backward(kBf16, act.data(), gate_up.data(), d.data(), nullptr, kRows, kFfn, nullptr);
  });
  Array<T> x = array(kRows * kHeads * kDim);
  Array<float> cos = floats(3 * kDim / 2), sin = floats(3 * kDim / 2);
  const int64_t positions[kRows] = {0, 2};
  // Angles: 4 bytes for each of cos and sin and pair, once for four heads, on a card from the cache.
  traffic::Bytes rope = traffic::rope(kRows, kHeads, kDim, kItem);
  rope.read += kRows * kHeads / 4 * kDim / 2 * 8;
  expect_traffic(rope, 0, [&] {
    cuda::rope_apply(kBf16, x.data(), kHeads * kDim, positions, cos.data(), sin.data(), kRows, kHeads, kDim,
                     1, nullptr);
  });
}

TEST(Traffic, EightBitFloats) {
  constexpr int64_t kRows = 80, kWidth = 1024;
  Array<T> x = array(kRows * kWidth);
  std::vector<uint8_t> by_rows(kRows * kWidth), by_columns(kRows * kWidth);
  auto parts = unwritten_parts(cuda::fp8_largest_parts(kRows));
  float scale = 0;
  expect_traffic(traffic::fp8_largest(kRows, kWidth, kItem), 0,
                 [&] { cuda::fp8_largest(kBf16, x.data(), kRows, kWidth, kWidth, parts.data(), nullptr); });
  cuda::fp8_scale(parts.data(), static_cast<int64_t>(parts.size()), cuda::Fp8::kE4M3, &scale, nullptr);
  for (const bool both : {false, true}) {
    expect_traffic(traffic::fp8_quantize(kRows, kWidth, kItem, both ? 2 : 1), 0, [&] {
      cuda::fp8_quantize(kBf16, x.data(), kRows, kWidth, kWidth, cuda::Fp8::kE4M3, &scale, by_rows.data(),
                         both ? by_columns.data() : nullptr, kRows, nullptr);
    });
  }
}

TEST(Traffic, Vocabulary) {
  constexpr int64_t kRows = 2, kVocabulary = 8192, kWidth = 512;
  Array<T> logits = array(kRows * kVocabulary);
  Array<float> loss = floats(kRows);
  const int64_t targets[kRows] = {3, 70};
  int64_t correct[kRows];
  const double scale = 1;
  for (const double* wanted : {static_cast<const double*>(nullptr), &scale}) {
    expect_traffic(traffic::cross_entropy(kRows, kVocabulary, kItem, wanted != nullptr), 0, [&] {
      cuda::cross_entropy_rows(kBf16, logits.data(), targets, loss.data(), correct, wanted, kRows,
                               kVocabulary, nullptr);
    });
  }
  const int64_t tokens[] = {0, 0, 0, 2, 5}, places[] = {1, 2, 4, 0, 3};
  Array<T> d_out = array(5 * kWidth);
  Array<float> d_weight = floats(6 * kWidth);
  expect_traffic(traffic::embedding_backward(5, 3, kWidth, kItem, 4), 0, [&] {
    cuda::embedding_backward(kBf16, d_out.data(), tokens, places, Element::kFloat32, d_weight.data(), 5,
                             kWidth, nullptr);
  });
}

TEST(Traffic, OptimizerInMemoryModes) {
  constexpr int64_t kElements = 4104;
  constexpr StateForm kMasters[] = {StateForm::kFp32, StateForm::kSplit, StateForm::kBf16};
  constexpr StateForm kMoments[][2] = {{StateForm::kFp32, StateForm::kFp32},
                                       {StateForm::kBf16, StateForm::kBf16},
                                       {StateForm::kFirst8Bit, StateForm::kSecond8Bit}};
  Array<T> gradient = array(kElements), weights = array(kElements);
  Array<float> wide_gradient = floats(kElements);
  // Large enough for every form.
  Array<float> p = floats(kElements), m = floats(kElements), v = floats(kElements), scales_m = floats(17),
               scales_v = floats(17), ties = floats(kElements / 32 + 1);
  const cuda::AdamWPiece pieces[] = {{0, 3000, 64, 0, true}, {3000, kElements, 0, 1, false}};
  const cuda::AdamWPiece shifted[] = {{0, 3000, 65, 0, true}, {3000, kElements, 0, 1, false}};
  StateUpdate update;
  update.decayed = {};
  update.decayed.bias_correction2_sqrt = update.decayed.decay = update.decayed.epsilon = 1;
  update.undecayed = update.decayed;
  for (const StateForm master : kMasters) {
    for (const auto& [first, second] : kMoments) {
      if (master == StateForm::kFp32 && first == master) continue;
      cuda::AdamWState state{{master, p.data(), ties.data(), weights.data()},
                             {first, m.data(), scales_m.data(), nullptr},
                             {second, v.data(), scales_v.data(), nullptr},
                             gradient.data(),
                             kBf16,
                             kBf16};
      const int64_t weight_item = master == StateForm::kFp32 ? kItem : 0;
      const auto model = [&](int64_t gradient_item, int64_t item) {
        return traffic::adamw_state(kElements, gradient_item, master, first, second, item);
      };
      for (const auto* places : {pieces, shifted}) {
        expect_traffic(model(kItem, weight_item), 0,
                       [&] { cuda::adamw_update_state(state, kElements, places, 2, update, nullptr); });
      }
      state.gradient = wide_gradient.data();
      state.gradient_element = Element::kFloat32;
      expect_traffic(model(4, weight_item), 0,
                     [&] { cuda::adamw_update_state(state, kElements, pieces, 2, update, nullptr); });
      if (master != StateForm::kFp32) continue;
      state.master.weights = nullptr;
      expect_traffic(model(4, 0), 0,
                     [&] { cuda::adamw_update_state(state, kElements, pieces, 2, update, nullptr); });
    }
  }
}

TEST(Traffic, Optimizer) {
  constexpr int64_t kElements = 4099;
  Array<float> p = floats(kElements), m = floats(kElements), v = floats(kElements), sum = floats(kElements);
  Array<T> g = array(kElements), w = array(kElements);
  AdamWCoefficients c{};
  c.bias_correction2_sqrt = c.decay = c.epsilon = 1;
  expect_traffic(traffic::adamw(kElements, kItem, kItem), 0, [&] {
    cuda::adamw_update({p.data(), m.data(), v.data(), g.data(), kBf16, w.data(), kBf16}, kElements, c,
                       nullptr);
  });
  expect_traffic(traffic::adamw(kElements, 4, 0), 0, [&] {
    cuda::adamw_update(
        {p.data(), m.data(), v.data(), sum.data(), Element::kFloat32, nullptr, Element::kFloat32}, kElements,
        c, nullptr);
  });
  double parts[1];
  traffic::Bytes squares = traffic::sum_of_squares(kElements, kItem);
  squares.written += sizeof(double);
  expect_traffic(squares, 0, [&] { cuda::sum_of_squares(kBf16, g.data(), kElements, parts, nullptr); });
  const void* ranks[] = {g.data(), w.data(), g.data()};
  for (const bool accumulate : {false, true}) {
    expect_traffic(traffic::sum_ranks(kElements, 3, kItem, 4, accumulate), 0,
                   [&] { cuda::sum_ranks(kBf16, ranks, 3, sum.data(), kElements, accumulate, nullptr); });
  }
}

}  // namespace
}  // namespace satune
