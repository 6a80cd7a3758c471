#include "evaluation/paired_tests.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "data/files/error.h"
#include "evaluation/item_pairs.h"

namespace satune {
namespace {

double ratio_of(const ItemSums& sums) {
  return sums[0] / sums[1];
}

double exp_ratio_of(const ItemSums& sums) {
  return std::exp(ratio_of(sums));
}

TEST(PairedBootstrap, DrawsWithoutAnOrderGiveNothing) {
  std::vector<PairedItem> items;
  for (int i = 0; i < 20; ++i) {
    items.emplace_back();
    items.back().a = {1.0 + i % 3, 1};
    items.back().b = {1.5 + i % 4, 1};
  }
  RandomStream random(42, "test");
  const auto found = paired_bootstrap(items, ratio_of, 200, random);
  ASSERT_TRUE(found.has_value());
  EXPECT_LT(found->low, found->difference);
  EXPECT_GT(found->high, found->difference);
  // A perplexity of e^2000 on both sides: infinity less infinity.
  for (PairedItem& item : items) {
    item.a[0] += 2000;
    item.b[0] += 2000;
  }
  EXPECT_FALSE(paired_bootstrap(items, exp_ratio_of, 200, random).has_value());
  EXPECT_TRUE(paired_bootstrap(items, ratio_of, 200, random).has_value());
  items[7].b[0] = std::nan("");
  EXPECT_FALSE(paired_bootstrap(items, ratio_of, 200, random).has_value());
}

TEST(ItemPairs, AnItemWithoutANumberIsNamed) {
  ItemResults good, bad;
  for (int64_t item = 0; item < 4; ++item)
    good[item] =
        bad[item] = {{"acc", 1}, {"loss", 2.5}, {"tokens", 3}, {"gold", 0}, {"log_likelihoods", {0, -1}}};
  for (const char* key : {"acc", "loss", "gold"}) {
    ItemResults broken = bad;
    broken[2][key] = nullptr;
    const std::string metric = std::string(key) == "gold" ? "f1" : key;
    EXPECT_EQ(pair_items({good, "a"}, {good, "b"}, metric).items.size(), 4U);
    try {
      pair_items({good, "a.json: task quiz"}, {broken, "b.json: task quiz"}, metric);
      ADD_FAILURE() << metric;
    } catch (const BadInput& error) {
      EXPECT_EQ(error.what(), std::string("b.json: task quiz: item 2: found null under ") + key +
                                  ", expected a finite number");
    }
  }
}

TEST(ItemPairs, PagesAreWhatIsDrawn) {
  ItemResults a, b;
  const auto window = [](int64_t page, double score, int64_t words) {
    return Json{
        {"page", page}, {"log_likelihood", score}, {"tokens", 9}, {"words", words}, {"bytes", 5 * words}};
  };
  a = {{0, window(0, -4, 8)}, {1, window(0, -6, 8)}, {2, window(1, -3, 2)}};
  b = {{0, window(0, -5, 8)}, {1, window(0, -7, 8)}, {2, window(1, -2, 2)}};
  const MetricPairs words = pair_items({a, "a"}, {b, "b"}, "word_perplexity");
  ASSERT_EQ(words.items.size(), 2U);
  EXPECT_EQ(words.items[0].a[0], 10);
  EXPECT_EQ(words.items[0].a[1], 8);
  EXPECT_EQ(words.items[0].b[0], 12);
  EXPECT_DOUBLE_EQ(words.metric({13, 10}), std::exp(1.3));
  const MetricPairs bits = pair_items({a, "a"}, {b, "b"}, "bits_per_byte");
  EXPECT_EQ(bits.items[1].b[1], 10);
  EXPECT_DOUBLE_EQ(bits.metric({13, 50}), 0.26 / std::log(2.0));
  EXPECT_DOUBLE_EQ(pair_items({a, "a"}, {b, "b"}, "byte_perplexity").metric({13, 50}), std::exp(0.26));
  // Windows of before do not tell how long their page is.
  b[1].erase("words");
  EXPECT_TRUE(pair_items({a, "a"}, {b, "b"}, "word_perplexity").items.empty());
}

}  // namespace
}  // namespace satune
