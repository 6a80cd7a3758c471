#include "model/ops/cuda_kernels.h"
#include "tests/kernels/kernel_fixtures.h"

namespace satune {
namespace {

using namespace testing;

template <typename T>
class CrossEntropyKernel : public ::testing::Test {};
TYPED_TEST_SUITE(CrossEntropyKernel, AllElements, ElementName);

struct Expected {
  std::vector<double> loss, correct, gradient;
};

Expected oracle(const std::vector<double>& logits, const std::vector<int64_t>& targets, size_t vocabulary,
                double scale) {
  Expected expected;
  for (size_t r = 0; r < targets.size(); ++r) {
    const std::vector<double> row = part(logits, r * vocabulary, vocabulary);
    const auto top = std::max_element(row.begin(), row.end());  // the first of equals
    double sum = 0;
    for (const double value : row) sum += std::exp(value - *top);
    const auto target = static_cast<size_t>(targets[r]);
    expected.loss.push_back(std::log(sum) - (row[target] - *top));
    expected.correct.push_back(static_cast<size_t>(top - row.begin()) == target ? 1 : 0);
    for (size_t i = 0; i < vocabulary; ++i) {
      const double probability = std::exp(row[i] - *top) / sum;
      expected.gradient.push_back((probability - (i == target ? 1 : 0)) * scale);
    }
  }
  return expected;
}

/// Loss, correct and the logits afterwards, one behind another.
template <typename T>
std::vector<double> run_rows(const std::vector<double>& logits, const std::vector<int64_t>& targets,
                             const double* scale, size_t shift) {
  const size_t rows = targets.size();
  Array<T> values(logits, shift);
  Array<cuda::wide_t<T>> loss(std::vector<double>(rows, -1));
  std::vector<int64_t> correct(rows, -1);
  cuda::cross_entropy_rows(kElement<T>, values.data(), targets.data(), loss.data(), correct.data(), scale,
                           static_cast<int64_t>(rows), static_cast<int64_t>(logits.size() / rows), nullptr);
  std::vector<double> all = loss.values();
  for (const int64_t flag : correct) all.push_back(static_cast<double>(flag));
  append(all, values.values());
  return all;
}

TYPED_TEST(CrossEntropyKernel, LossHitsAndGradientsOfRowsOfAllLengths) {
  using T = TypeParam;
  const double scale = 0.3;
  // One pack, a part of one, several a thread, several warps; whole packs and not.
  for (const size_t vocabulary : {1, 7, 64, 1003, 4096}) {
    std::vector<double> logits = wave(3 * vocabulary, static_cast<double>(vocabulary), 9);
    for (double& value : logits) value = rounded<T>(value);
    const auto last = static_cast<int64_t>(vocabulary - 1);
    const std::vector<int64_t> targets = {0, last / 2, last};
    const Expected expected = oracle(logits, targets, vocabulary, scale);
    const auto found =
        in_any_order(1, [&](size_t shift) { return run_rows<T>(logits, targets, &scale, shift); });
    expect_close<float>(part(found, 0, 3), expected.loss, "loss");
    EXPECT_EQ(part(found, 3, 3), expected.correct);
    expect_close<T>(part(found, 6, logits.size()), expected.gradient, "gradient");
    const auto alone = run_rows<T>(logits, targets, nullptr, 0);
    EXPECT_TRUE(same_bits(part(alone, 0, 6), part(found, 0, 6)));
    EXPECT_TRUE(same_bits(part(alone, 6, logits.size()), logits));
  }
}

TYPED_TEST(CrossEntropyKernel, TheFirstOfEqualLogitsIsTheAnswer) {
  using T = TypeParam;
  constexpr size_t kVocabulary = 700;
  // The largest twice: in one pack, in two packs of a thread's own, in two warps.
  const std::vector<std::pair<int64_t, int64_t>> places = {
      {17, 18}, {16, 31}, {5, 5 + 512}, {3, 640}, {0, 699}};
  for (const auto& [first, second] : places) {
    std::vector<double> logits = wave(3 * kVocabulary, 1, 4);
    for (size_t row = 0; row < 3; ++row) {
      logits[row * kVocabulary + static_cast<size_t>(first)] = 6;
      logits[row * kVocabulary + static_cast<size_t>(second)] = 6;
    }
    const double scale = 1;  // the search runs in the row that becomes the gradient
    const auto found = in_any_order(1, [&](size_t shift) {
      return run_rows<T>(logits, {first, second, 100}, &scale, shift);
    });
    EXPECT_EQ(part(found, 3, 3), (std::vector<double>{1, 0, 0})) << first << " and " << second;
  }
}

TYPED_TEST(CrossEntropyKernel, ExtremeLogits) {
  using T = TypeParam;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr size_t kVocabulary = 300;
  const double scale = 1;
  // Far apart and large: no overflow. What is -inf has probability 0, also where a thread sees nothing else.
  std::vector<double> logits(2 * kVocabulary, -30000);
  logits[7] = 30000;
  for (size_t i = 0; i < kVocabulary; ++i) logits[kVocabulary + i] = -kInfinity;
  logits[kVocabulary + 290] = 2;
  logits[kVocabulary + 291] = 2;
  const auto found = run_rows<T>(logits, {7, 291}, &scale, 0);
  EXPECT_EQ(found[0], 0);
  EXPECT_NEAR(found[1], std::log(2.0), 1e-6);
  EXPECT_EQ(part(found, 2, 2), (std::vector<double>{1, 0}));
  for (size_t i = 0; i < kVocabulary; ++i) EXPECT_EQ(found[4 + i], 0) << i;
  EXPECT_EQ(found[4 + kVocabulary + 290], 0.5);
  EXPECT_EQ(found[4 + kVocabulary + 291], -0.5);
  EXPECT_EQ(found[4 + kVocabulary], 0);
  // What is not a number, and +inf, reach the loss.
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), kInfinity}) {
    std::vector<double> row = wave(kVocabulary, 2);
    row[123] = bad;
    EXPECT_TRUE(std::isnan(run_rows<T>(row, {5}, nullptr, 0)[0])) << bad;
  }
}

}  // namespace
}  // namespace satune
