// The number formats of the optimizer's state, bit by bit, and the noise they are rounded with.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "data/random.h"
#include "trainer/adamw_kernels.h"
#include "trainer/rounding_noise.h"
#include "trainer/state_array.h"
#include "trainer/state_kernels.h"

namespace satune::trainer_test {
namespace {

uint32_t bits(float value) {
  return std::bit_cast<uint32_t>(value);
}
float value(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

std::vector<uint32_t> noise_words(int64_t n, uint32_t update = 1) {
  std::vector<uint32_t> noise(static_cast<size_t>(n));
  rounding_noise({7, update, 0, 0}, 0, n, noise.data());
  return noise;
}

/// fp32 numbers of many sizes and both signs.
std::vector<float> assorted(int64_t n, uint64_t seed, int lowest_exponent, int highest_exponent) {
  RandomStream random(seed, "assorted");
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) {
    const int span = highest_exponent - lowest_exponent + 1;
    const int exponent = lowest_exponent + static_cast<int>(random.below(static_cast<uint64_t>(span)));
    const float mantissa = 1.0F + static_cast<float>(random.below(1 << 23)) * 0x1p-23F;
    values.push_back(std::ldexp(random.below(2) == 0 ? mantissa : -mantissa, exponent));
  }
  return values;
}

// --- split masters ---

TEST(SplitMasters, RestoreEveryValueFromARoundedWeight) {
  // Every upper half, with the lower halves at which something changes, and random ones.
  std::vector<uint32_t> lower = {0, 1, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff};
  RandomStream random(2, "lower halves");
  while (lower.size() < 24) lower.push_back(static_cast<uint32_t>(random.below(1 << 16)));
  const size_t n = lower.size();
  std::vector<float> masters(n), restored(n);
  std::vector<uint16_t> weights(n), remainders(n), nearest(n);
  std::vector<uint8_t> ties(n / 8);
  int64_t ties_seen = 0;
  for (uint32_t upper = 0; upper < 1 << 16; ++upper) {
    for (size_t i = 0; i < n; ++i) masters[i] = value(upper << 16 | lower[i]);
    split_masters(masters.data(), weights.data(), remainders.data(), ties.data(), static_cast<int64_t>(n));
    join_masters(weights.data(), remainders.data(), ties.data(), restored.data(), static_cast<int64_t>(n));
    round_to_bf16(masters.data(), nearest.data(), static_cast<int64_t>(n));
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(weights[i], nearest[i]) << std::hex << bits(masters[i]);
      if (std::isnan(masters[i])) {
        ASSERT_TRUE(std::isnan(restored[i])) << std::hex << bits(masters[i]);
      } else {
        ASSERT_EQ(bits(restored[i]), bits(masters[i])) << std::hex << bits(masters[i]);
      }
    }
    for (const uint8_t byte : ties) ties_seen += std::popcount(byte);
  }
  EXPECT_GT(ties_seen, 1 << 14) << "16 bits alone would do";
}

TEST(SplitMasters, KeepNaNBesideATie) {
  std::vector<float> masters(8, value(0x3f808000)), restored(8);  // rounded down to even
  std::vector<uint16_t> weights(8), remainders(8);
  uint8_t ties = 0;
  masters[3] = value(0x7fff8000);  // as far from its upper half as a tie
  split_masters(masters.data(), weights.data(), remainders.data(), &ties, 8);
  join_masters(weights.data(), remainders.data(), &ties, restored.data(), 8);
  EXPECT_EQ(ties, 0xf7);
  EXPECT_TRUE(std::isnan(restored[3]));
  EXPECT_EQ(restored[4], masters[4]);
}

// --- noise ---

/// Philox4x32-10 as its paper has it.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return c;
}

TEST(RoundingNoise, IsPhiloxOfWhatIsRounded) {
  // Known answers of the Random123 library.
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));

  const NoiseKey key{0x299f31d0a4093822, 123456, 77, 2};
  for (const int64_t first : {0, 1, 5, 1021, (1 << 30) + 3}) {
    constexpr int64_t kCount = 700;
    std::vector<uint32_t> noise(kCount);
    rounding_noise(key, first, kCount, noise.data());
    for (int64_t i = 0; i < kCount; ++i) {
      const int64_t element = first + i;
      const Words words =
          philox({static_cast<uint32_t>(element / 4), 2U << 28, 123456, 77}, {0xa4093822, 0x299f31d0});
      ASSERT_EQ(noise[static_cast<size_t>(i)], words[static_cast<size_t>(element % 4)]) << element;
    }
  }
}

// rival: constant seed for stochastic rounding noise.
TEST(RoundingNoise, IsNeverTheSameTwice) {
  constexpr int64_t kCount = 256;
  const auto words = [](const NoiseKey& key) {
    std::vector<uint32_t> noise(kCount);
    rounding_noise(key, 0, kCount, noise.data());
    return noise;
  };
  const NoiseKey key{1, 2, 3, 0};
  for (const NoiseKey& other :
       {NoiseKey{2, 2, 3, 0}, NoiseKey{1, 3, 3, 0}, NoiseKey{1, 2, 4, 0}, NoiseKey{1, 2, 3, 1}}) {
    int64_t equal = 0;
    const auto a = words(key), b = words(other);
    for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1 : 0;
    EXPECT_LE(equal, 1);
  }
}

// --- bf16 ---

TEST(StochasticBf16, IsANeighbourAndRightOnTheMean) {
  constexpr int64_t kRoundings = 1 << 16;
  const auto noise = noise_words(kRoundings);
  std::vector<uint16_t> rounded(kRoundings);
  for (const float number : {1.00390625F * 1.001F, -3.7e-5F, 0x1.fep-100F, 1e-42F, 0x1.00003p3F}) {
    const std::vector<float> same(kRoundings, number);
    round_to_bf16_stochastically(same.data(), noise.data(), rounded.data(), kRoundings);
    const uint32_t down = bits(number) & 0xffff0000U;
    const double low = value(down), high = value(down + 0x10000U);
    double sum = 0;
    for (const uint16_t word : rounded) {
      const double found = value(uint32_t{word} << 16);
      ASSERT_TRUE(found == low || found == high) << number;
      sum += found;
    }
    // Five standard errors of a mean of coin tosses.
    EXPECT_NEAR(sum / kRoundings, number, 5 * std::abs(high - low) * 0.5 / std::sqrt(kRoundings)) << number;
  }
}

TEST(StochasticBf16, LeavesWhatBf16HasAndFiniteStaysFinite) {
  const std::vector<float> special = {0.0F,
                                      -0.0F,
                                      1.0F,
                                      -1.5F,
                                      0x1p-133F,
                                      std::numeric_limits<float>::infinity(),
                                      -std::numeric_limits<float>::infinity()};
  const auto n = static_cast<int64_t>(special.size());
  const std::vector<uint32_t> all_ones(special.size(), 0xffffffffU);
  std::vector<uint16_t> rounded(special.size());
  round_to_bf16_stochastically(special.data(), all_ones.data(), rounded.data(), n);
  for (size_t i = 0; i < special.size(); ++i) EXPECT_EQ(uint32_t{rounded[i]} << 16, bits(special[i]));
  const float extremes[] = {std::numeric_limits<float>::max(), std::numeric_limits<float>::lowest(),
                            std::nanf(""), value(0x7f800001)};
  round_to_bf16_stochastically(extremes, all_ones.data(), rounded.data(), 4);
  EXPECT_EQ(rounded[0], 0x7f7f);
  EXPECT_EQ(rounded[1], 0xff7f);
  for (const int i : {2, 3}) EXPECT_TRUE(std::isnan(value(uint32_t{rounded[static_cast<size_t>(i)]} << 16)));
}

// --- 8 bits ---

struct Block {
  std::vector<uint8_t> codes;
  float scale = 0;
  std::vector<float> decoded;
};

Block through_8bit(const std::vector<float>& values, bool second, const std::vector<uint32_t>& noise) {
  const auto n = static_cast<int64_t>(values.size());
  Block block{std::vector<uint8_t>(values.size()), 0, std::vector<float>(values.size())};
  const uint32_t* words = noise.empty() ? nullptr : noise.data();
  (second ? encode_second_moments : encode_first_moments)(values.data(), words, block.codes.data(),
                                                          &block.scale, n);
  (second ? decode_second_moments : decode_first_moments)(block.codes.data(), block.scale,
                                                          block.decoded.data(), n);
  return block;
}

std::vector<float> squares(std::vector<float> values) {
  for (float& v : values) v *= v;
  return values;
}

TEST(EightBitMoments, AreWithinOneLevelAndKeepSigns) {
  for (const bool second : {false, true}) {
    // As far down as the levels reach.
    const auto values = second ? squares(assorted(256, 3, -14, 0)) : assorted(256, 3, -14, 0);
    for (const auto& noise : {std::vector<uint32_t>(), noise_words(256)}) {
      const Block block = through_8bit(values, second, noise);
      const double most = noise.empty() ? 1.0 / 16 : 1.0 / 8;  // of 8 levels an octave
      for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_LE(std::abs(block.decoded[i] - values[i]), most * std::abs(values[i])) << values[i];
      }
    }
  }
}

TEST(EightBitMoments, AreRightOnTheMean) {
  constexpr int kRoundings = 20000;
  for (const bool second : {false, true}) {
    // The last one of the first moment lies below the lowest level.
    const std::vector<float> values = second ? std::vector<float>{1.9F, 0.3F, 7.7e-5F, 3.3e-9F}
                                             : std::vector<float>{-1.9F, 0.3F, -7.7e-4F, 1.3e-5F};
    std::vector<double> sums(values.size());
    for (uint32_t i = 0; i < kRoundings; ++i) {
      const Block block = through_8bit(values, second, noise_words(4, i));
      for (size_t k = 0; k < values.size(); ++k) sums[k] += block.decoded[k];
    }
    for (size_t k = 0; k < values.size(); ++k) {
      const double step = std::max(std::abs(values[k]) / 8.0, second ? 0.0 : 1.9 * 0x1p-15);
      EXPECT_NEAR(sums[k] / kRoundings, values[k], 5 * step * 0.5 / std::sqrt(kRoundings)) << values[k];
    }
  }
}

TEST(EightBitMoments, GiveTheSameCodesAgain) {
  for (const bool second : {false, true}) {
    for (uint64_t seed = 0; seed < 50; ++seed) {
      auto values = assorted(256, seed, -40, seed % 5 == 0 ? -20 : 3);
      if (seed % 3 == 0) std::fill(values.begin(), values.begin() + 100, 0.0F);
      if (seed % 7 == 0) {
        for (float& v : values) v *= 0x1p-120F;  // down to numbers that are not normalised
      }
      if (second) {
        for (float& v : values) v = std::abs(v);
      }
      const Block once = through_8bit(values, second, noise_words(256));
      for (const auto& noise : {std::vector<uint32_t>(), noise_words(256, 99)}) {
        const Block twice = through_8bit(once.decoded, second, noise);
        EXPECT_EQ(twice.codes, once.codes) << "seed " << seed;
        EXPECT_EQ(twice.scale, once.scale);
        EXPECT_EQ(twice.decoded, once.decoded);
      }
    }
  }
}

TEST(EightBitMoments, ASecondMomentIsZeroOnlyWhereItWas) {
  std::vector<float> values(256, 0.0F);
  values[0] = 1e30F;
  values[1] = 1e-45F;
  values[2] = 1e-12F;
  const Block block = through_8bit(values, true, noise_words(256));
  EXPECT_GT(block.decoded[1], 0.0F);
  EXPECT_GE(block.decoded[2], 1e-12F);
  for (size_t i = 3; i < values.size(); ++i) EXPECT_EQ(block.decoded[i], 0.0F);
  const Block tiny = through_8bit(std::vector<float>(256, 1e-45F), true, noise_words(256));
  EXPECT_GT(tiny.decoded[17], 0.0F);
  EXPECT_EQ(through_8bit(std::vector<float>(256, 0.0F), true, {}).scale, 0.0F);
  EXPECT_EQ(through_8bit(std::vector<float>(256, -0.0F), false, {}).scale, 0.0F);
  // The largest finite number does not become infinity.
  const Block large = through_8bit({std::numeric_limits<float>::max()}, true, {0xffffffffU});
  EXPECT_TRUE(std::isfinite(large.decoded[0]));
}

// --- as tensors ---

TEST(StateTensors, HaveTheBitsOfTheKernels) {
  constexpr int64_t kCount = 3 * 1024 + 64;
  std::vector<float> values = assorted(kCount, 4, -60, 10);
  for (size_t i = 0; i < values.size(); i += 37) values[i] = 0.0F;
  values[5] = value(0x3f808000);  // a tie rounded down to even
  values[6] = value(0x3f818000);  // and one rounded up
  for (const StateForm form :
       {StateForm::kSplit, StateForm::kBf16, StateForm::kFirst8Bit, StateForm::kSecond8Bit}) {
    std::vector<float> numbers = form == StateForm::kSecond8Bit ? squares(values) : values;
    const at::Tensor input = at::from_blob(numbers.data(), {kCount}, at::kFloat);
    const at::ScalarType type = form == StateForm::kSplit  ? at::kShort
                                : form == StateForm::kBf16 ? at::kBFloat16
                                                           : at::kByte;
    StateSlices tensors{
        at::zeros({kCount}, type),
        form == StateForm::kSplit ? at::zeros({kCount / 8}, at::kByte) : at::zeros({13}, at::kFloat),
        at::zeros({kCount}, at::kBFloat16)};
    encode_tensor(form, tensors, input);
    StateArray array = form == StateForm::kSplit ? StateArray::split(at::zeros({kCount}, at::kBFloat16))
                                                 : StateArray(form, kCount, at::kCPU);
    for (int64_t at = 0; at < kCount; at += kStateTile) {
      array.encode(at, std::min(kStateTile, kCount - at), numbers.data() + at, nullptr);
    }
    EXPECT_TRUE(at::equal(tensors.numbers.view(at::kByte), array.numbers().view(at::kByte)));
    if (array.stored_scales(0, kCount).defined()) {
      EXPECT_TRUE(at::equal(tensors.extra, array.stored_scales(0, kCount)));
    }
    EXPECT_TRUE(at::equal(decode_tensor(form, tensors), array.values(0, kCount)));
    if (form == StateForm::kSplit) {
      EXPECT_TRUE(at::equal(array.values(0, kCount), input));
    }
  }
}

}  // namespace
}  // namespace satune::trainer_test
