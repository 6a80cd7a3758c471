#include "data/fingerprint.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "data/random.h"
#include "data/utf8.h"

namespace satune {
namespace {

std::string sha256(std::string_view text, size_t part) {
  Sha256 hash;
  for (size_t i = 0; i < text.size(); i += part) hash.update(std::as_bytes(std::span(text.substr(i, part))));
  return hash.hex();
}

// Values of FIPS 180-4's examples and of Python's hashlib.
TEST(Sha256, AgreesWithPublishedValues) {
  EXPECT_EQ(sha256("", 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc", 8), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 8),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  const std::string million(1000000, 'a');
  for (const size_t part : {1000000, 64, 63, 7}) {
    EXPECT_EQ(sha256(million, part), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
        << part;
  }
}

TEST(Sha256, PaddingIsRightAtEveryLengthAroundABlock) {
  // Of 'a' * n for n in 55, 56, 63, 64, 65 (hashlib).
  EXPECT_EQ(sha256(std::string(55, 'a'), 64),
            "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");
  EXPECT_EQ(sha256(std::string(56, 'a'), 64),
            "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");
  EXPECT_EQ(sha256(std::string(63, 'a'), 64),
            "7d3e74a05d7db15bce4ad9ec0658ea98e3f06eeecf16b4c6fff2da457ddc2f34");
  EXPECT_EQ(sha256(std::string(64, 'a'), 64),
            "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
  EXPECT_EQ(sha256(std::string(65, 'a'), 64),
            "635361c48bb9eab14198e76ea8ab7f1a41685d6ad62aa9146d301d4f17eb0ae0");
}

TEST(Sha256, FieldsDoNotRunIntoEachOther) {
  Sha256 one, other;
  one.update_field("ab"), one.update_field("c");
  other.update_field("a"), other.update_field("bc");
  EXPECT_NE(one.hex(), other.hex());
}

// The numbers are those of an independent implementation (Python integers) of what random.h describes: they
// hold the order of every run ever made, so they never change.
TEST(RandomStream, IsTheSameEverywhere) {
  RandomStream random(42, "sample order", 3);
  EXPECT_EQ(random.next(), 7811894640526350345ULL);
  EXPECT_EQ(random.next(), 3256039115495224066ULL);
  std::vector<int> values(10);
  std::iota(values.begin(), values.end(), 0);
  RandomStream order(42, "sample order", 0);
  shuffle(std::span(values), order);
  EXPECT_EQ(values, (std::vector<int>{2, 0, 1, 9, 8, 6, 7, 3, 4, 5}));
}

TEST(RandomStream, SeedPurposeAndIndexAllMatter) {
  const uint64_t base = RandomStream(1, "a", 0).next();
  EXPECT_NE(base, RandomStream(2, "a", 0).next());
  EXPECT_NE(base, RandomStream(1, "b", 0).next());
  EXPECT_NE(base, RandomStream(1, "a", 1).next());
  EXPECT_EQ(base, RandomStream(1, "a", 0).next());
}

TEST(RandomStream, BoundedNumbersAreUnbiased) {
  // With bound = 3 * 2^62 a plain multiplication would give the multiples of three double weight (1/2 of the
  // draws instead of 1/3), a plain remainder the lowest 2^62 values.
  RandomStream random(7, "bias");
  const uint64_t third = uint64_t{1} << 62;
  int multiples = 0, low = 0;
  constexpr int kDraws = 30000;
  for (int i = 0; i < kDraws; ++i) {
    const uint64_t value = random.below(3 * third);
    ASSERT_LT(value, 3 * third);
    multiples += value % 3 == 0;
    low += value < third;
  }
  EXPECT_NEAR(multiples, kDraws / 3, 450);
  EXPECT_NEAR(low, kDraws / 3, 450);  // 5.5 standard deviations
  EXPECT_EQ(random.below(1), 0u);
}

TEST(RandomStream, EveryPermutationIsAsLikely) {
  RandomStream random(7, "permutations");
  std::array<int, 6> seen{};
  constexpr int kDraws = 12000;
  for (int i = 0; i < kDraws; ++i) {
    std::array<int, 3> values = {0, 1, 2};
    shuffle(std::span<int>(values), random);
    ++seen[static_cast<size_t>(values[0] * 2 + (values[1] > values[2]))];
  }
  for (const int count : seen) EXPECT_NEAR(count, kDraws / 6, 220);  // 5.4 standard deviations
}

TEST(Utf8, FindsTheFirstInvalidByte) {
  EXPECT_EQ(find_invalid_utf8("plain \xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80"), std::nullopt);
  EXPECT_EQ(find_invalid_utf8("ab\x80"), 2u);            // a lone continuation
  EXPECT_EQ(find_invalid_utf8("a\xC0\xAF"), 1u);         // overlong
  EXPECT_EQ(find_invalid_utf8("a\xED\xA0\x80"), 1u);     // surrogate
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0u);  // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("abc\xE2\x82"), 3u);       // cut off
}

TEST(Utf8, RunsOfWhiteSpaceAreWhatPythonSplitsAt) {
  EXPECT_EQ(count_white_space_runs(""), 0);
  EXPECT_EQ(count_white_space_runs("a"), 0);
  EXPECT_EQ(count_white_space_runs(" \n\x1c a \xC2\xA0\xE3\x80\x80 b\xE2\x80\x8B"
                                   "c\t"),
            3);
}

TEST(Utf8, TrimsAsPythonDoes) {
  EXPECT_EQ(trim_white_space(" \t\r\n\x0b\x0c\x1c\x1f a b \xC2\xA0\xE3\x80\x80\xE2\x80\xA8\xC2\x85"), "a b");
  EXPECT_EQ(trim_white_space("\xE2\x80\x8B"
                             "a"),
            "\xE2\x80\x8B"
            "a");  // zero width space is none
  EXPECT_EQ(trim_white_space(" \n "), "");
  EXPECT_EQ(trim_white_space(""), "");
  EXPECT_EQ(trim_white_space("\xE9 "), "\xE9");
}

}  // namespace
}  // namespace satune
