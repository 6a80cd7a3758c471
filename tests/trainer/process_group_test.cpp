#include "trainer/process_group.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <time.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <thread>

#include "data/files/error.h"
#include "data/random.h"
#include "tests/trainer/ranks.h"

namespace satune::trainer_test {
namespace {

std::vector<std::string> none_of(int64_t size) {
  return std::vector<std::string>(static_cast<size_t>(size));
}

at::ScalarType sum_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

/// Numbers of either sign over six orders of magnitude, so that every order of additions rounds differently.
at::Tensor numbers(int64_t count, at::ScalarType type, uint64_t seed) {
  RandomStream random(seed, "process group test");
  at::Tensor values = at::empty({count}, at::kDouble);
  double* data = values.mutable_data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) {
    const double magnitude = std::pow(10.0, static_cast<double>(random.below(7)) - 3.0);
    data[i] = magnitude * (static_cast<double>(random.below(2000001)) / 1e6 - 1.0);
  }
  return values.to(type);
}

/// Addition after addition in the type of `sum`, as anyone would write it down.
template <typename Sum>
void add_plainly(const at::Tensor& sum, const at::Tensor& addend) {
  const at::Tensor converted = addend.to(sum.scalar_type());
  const Sum* from = converted.const_data_ptr<Sum>();
  Sum* to = sum.mutable_data_ptr<Sum>();
  for (int64_t i = 0; i < sum.numel(); ++i) {
    volatile Sum next = to[i] + from[i];
    to[i] = next;
  }
}

void add_in_order(const at::Tensor& sum, const at::Tensor& addend) {
  sum.scalar_type() == at::kDouble ? add_plainly<double>(sum, addend) : add_plainly<float>(sum, addend);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

uint64_t seed_of(int64_t rank, int64_t batch = 0) {
  return static_cast<uint64_t>(100 * batch + rank);
}

/// What rank `rank` of `size` has to hold after a reduce-scatter of numbers(size * part, type, seed_of(r)).
at::Tensor expected_sum(int64_t rank, int64_t size, int64_t part, at::ScalarType type) {
  at::Tensor sum;
  for (int64_t r = 0; r < size; ++r) {
    const at::Tensor addend = numbers(size * part, type, seed_of(r)).narrow(0, rank * part, part);
    if (r == 0) {
      sum = addend.to(sum_type(type), false, /*copy=*/true);
    } else {
      add_in_order(sum, addend);
    }
  }
  return sum;
}

struct Case {
  at::ScalarType type;
  int64_t size;
};

class GlooGroup : public ::testing::TestWithParam<Case> {};

TEST_P(GlooGroup, SumsInRankOrderWhateverTheSizeAndTheThreads) {
  const auto [type, size] = GetParam();
  for (const int64_t part : {1L, 1023L, 4096L, 50001L}) {
    for (const int threads : {1, 3}) {
      const auto errors = run_gloo(size, [&, type = type, size = size](ProcessGroup& group) {
        at::set_num_threads(threads);
        const int64_t rank = group.world().rank;
        const at::Tensor parts = numbers(size * part, type, seed_of(rank)), before = parts.clone();
        const at::Tensor scratch = at::full({size * part}, std::nan(""), type);
        const at::Tensor sum = at::full({part}, std::nan(""), sum_type(type));
        group.reduce_scatter(parts, scratch, sum, false)->wait();
        EXPECT_TRUE(same_bits(sum, expected_sum(rank, size, part, type))) << part << " of rank " << rank;
        EXPECT_TRUE(same_bits(parts, before));
        EXPECT_EQ(group.traffic().reduced, (size - 1) * part * parts.itemsize());
        group.shut_down();
      });
      EXPECT_EQ(errors, none_of(size));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, GlooGroup,
                         ::testing::Values(Case{at::kFloat, 1}, Case{at::kFloat, 2}, Case{at::kFloat, 3},
                                           Case{at::kFloat, 4}, Case{at::kBFloat16, 3},
                                           Case{at::kBFloat16, 4}, Case{at::kHalf, 3}, Case{at::kDouble, 3},
                                           Case{at::kDouble, 4}),
                         [](const auto& info) {
                           return fmt::format("{}Of{}", at::toString(info.param.type), info.param.size);
                         });

TEST(GlooGroup, RanksThatAccumulateAddAsOneRankDoes) {
  constexpr int64_t kPart = 999, kBatches = 3, kSize = 2;
  // One process over the same batches: rank 0's, rank 1's, then the next.
  at::Tensor alone = at::zeros({kSize * kPart});
  const auto local = make_local_group();
  for (int64_t batch = 0; batch < kBatches; ++batch) {
    for (int64_t rank = 0; rank < kSize; ++rank) {
      const at::Tensor gradients = numbers(kSize * kPart, at::kBFloat16, seed_of(rank, batch));
      local->reduce_scatter(gradients, at::empty_like(gradients), alone, batch + rank > 0)->wait();
    }
  }
  const auto errors = run_gloo(kSize, [&](ProcessGroup& group) {
    const int64_t rank = group.world().rank;
    at::Tensor sum = at::full({kPart}, std::nan(""));
    for (int64_t batch = 0; batch < kBatches; ++batch) {
      const at::Tensor gradients = numbers(kSize * kPart, at::kBFloat16, seed_of(rank, batch));
      group.reduce_scatter(gradients, at::empty_like(gradients), sum, batch > 0)->wait();
    }
    EXPECT_TRUE(same_bits(sum, alone.narrow(0, rank * kPart, kPart)));
    group.shut_down();
  });
  EXPECT_EQ(errors, none_of(kSize));
}

TEST(GlooGroup, EmptyPartsTakePart) {
  const auto errors = run_gloo(3, [](ProcessGroup& group) {
    const at::Tensor nothing = at::empty({0}), sum = at::empty({0});
    group.reduce_scatter(nothing, nothing, sum, true)->wait();
    group.all_gather(nothing, sum)->wait();
    EXPECT_TRUE(group.exchange({}).empty());
    EXPECT_EQ(group.traffic().reduced + group.traffic().gathered + group.traffic().other, 0);
    EXPECT_EQ(group.traffic().collectives, 3);
    group.shut_down();
  });
  EXPECT_EQ(errors, none_of(3));
}

TEST(GlooGroup, GathersInPlaceAndFromElsewhere) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    for (const int64_t size : {1, 2, 3, 4}) {
      constexpr int64_t kPart = 70001;
      const auto errors = run_gloo(size, [&](ProcessGroup& group) {
        const int64_t rank = group.world().rank;
        std::vector<at::Tensor> every;
        for (int64_t r = 0; r < size; ++r) every.push_back(numbers(kPart, type, seed_of(r)));
        const at::Tensor expected = at::cat(every);
        const at::Tensor elsewhere = at::full({size * kPart}, 7, type);
        group.all_gather(elsewhere, every[static_cast<size_t>(rank)])->wait();
        EXPECT_TRUE(same_bits(elsewhere, expected));
        const at::Tensor in_place = at::full({size * kPart}, 7, type);
        const at::Tensor own = in_place.narrow(0, rank * kPart, kPart);
        own.copy_(every[static_cast<size_t>(rank)]);
        group.all_gather(in_place, own)->wait();
        EXPECT_TRUE(same_bits(in_place, expected));
        EXPECT_EQ(group.traffic().gathered, 2 * (size - 1) * kPart * expected.itemsize());
        group.shut_down();
      });
      EXPECT_EQ(errors, none_of(size));
    }
  }
}

TEST(GlooGroup, ManyCollectivesAreInFlightAtOnce) {
  constexpr int64_t kSize = 3, kCount = 12;
  const auto errors = run_gloo(kSize, [](ProcessGroup& group) {
    const int64_t rank = group.world().rank;
    std::vector<at::Tensor> sums, wholes;
    std::vector<std::unique_ptr<Work>> works;
    for (int64_t i = 0; i < kCount; ++i) {
      const int64_t part = 20000 - 1500 * i;
      const at::Tensor parts = numbers(kSize * part, at::kFloat, seed_of(rank));
      sums.push_back(at::empty({part}));
      works.push_back(group.reduce_scatter(parts, at::empty_like(parts), sums.back(), false));
      wholes.push_back(at::empty({kSize * part}));
      works.push_back(group.all_gather(wholes.back(), numbers(part, at::kFloat, seed_of(rank))));
    }
    // Every rank waits in another order.
    for (size_t i = 0; i < works.size(); ++i) {
      works[rank == 0 ? i : rank == 1 ? works.size() - 1 - i : (i * 5) % works.size()]->wait();
    }
    for (int64_t i = 0; i < kCount; ++i) {
      const int64_t part = 20000 - 1500 * i;
      EXPECT_TRUE(same_bits(sums[i], expected_sum(rank, kSize, part, at::kFloat))) << i;
      for (int64_t r = 0; r < kSize; ++r) {
        EXPECT_TRUE(
            same_bits(wholes[i].narrow(0, r * part, part).clone(), numbers(part, at::kFloat, seed_of(r))))
            << i;
      }
    }
    group.shut_down();
  });
  EXPECT_EQ(errors, none_of(kSize));
}

std::vector<double> odd_numbers(int64_t rank) {
  const auto nan = std::bit_cast<double>(0xfff4000000000000U + static_cast<uint64_t>(rank) + 0xabcdU);
  return {nan,
          -0.0,
          0.0,
          std::numeric_limits<double>::denorm_min(),
          -std::numeric_limits<double>::infinity(),
          static_cast<double>(rank)};
}

void expect_exchanged(ProcessGroup& group) {
  const World world = group.world();
  const std::vector<double> all = group.exchange(odd_numbers(world.rank));
  std::vector<double> expected;
  for (int64_t rank = 0; rank < world.size; ++rank) {
    const auto numbers = odd_numbers(rank);
    expected.insert(expected.end(), numbers.begin(), numbers.end());
  }
  ASSERT_EQ(all.size(), expected.size());
  EXPECT_EQ(std::memcmp(all.data(), expected.data(), all.size() * sizeof(double)), 0);
}

TEST(GlooGroup, ExchangesNumbersBitForBit) {
  for (const int64_t size : {1, 2, 3, 4}) {
    const auto errors = run_gloo(size, [](ProcessGroup& group) {
      for (int i = 0; i < 20; ++i) expect_exchanged(group);
      EXPECT_EQ(group.traffic().other, 20 * 6 * 8 * (group.world().size - 1));
      group.shut_down();
    });
    EXPECT_EQ(errors, none_of(size));
  }
}

TEST(GlooGroup, CollectivesThatAreDroppedLeaveTheGroupUsable) {
  constexpr int64_t kSize = 3, kPart = 500000;
  const auto errors = run_gloo(
      kSize,
      [](ProcessGroup& group) {
        const int64_t rank = group.world().rank;
        for (int64_t round = 0; round < 4; ++round) {
          const at::Tensor whole = at::empty({kSize * kPart});
          const auto work = group.all_gather(whole, numbers(kPart, at::kFloat, seed_of(rank)));
          // An interrupted rank drops what another waits for.
          if (round == rank) continue;
          work->wait();
          EXPECT_TRUE(same_bits(whole.narrow(0, round % kSize * kPart, kPart).clone(),
                                numbers(kPart, at::kFloat, seed_of(round % kSize))));
        }
        expect_exchanged(group);
        const at::Tensor parts = at::ones({kSize * kPart});
        group.reduce_scatter(parts, at::empty_like(parts), at::empty({kPart}), false);
        group.shut_down();
      },
      30);
  EXPECT_EQ(errors, none_of(kSize));
}

// Whoever waits for the rank that leaves names it. The other may have nothing left to do with it: it waits
// for that one, and names it once it leaves as well. That the run names the first cause is the coordinator's
// affair.
TEST(GlooGroup, ARankThatLeavesIsNamedAtOnce) {
  const auto begin = std::chrono::steady_clock::now();
  std::atomic<int64_t> first = -1;
  const auto errors = run_gloo(3, [&](ProcessGroup& group) {
    group.exchange(std::vector<double>{1});
    const int64_t rank = group.world().rank;
    if (rank == 2) throw std::runtime_error("leaves");
    const at::Tensor parts = at::ones({3 * 100000});
    try {
      group.reduce_scatter(parts, at::empty_like(parts), at::empty({100000}), false)->wait();
    } catch (const EnvironmentError&) {
      int64_t none = -1;
      first.compare_exchange_strong(none, rank);
      throw;
    }
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  EXPECT_EQ(errors[2], "leaves");
  ASSERT_GE(first, 0);
  EXPECT_TRUE(errors[first].find(" rank 2: ") != std::string::npos) << errors[first];
  for (const int64_t rank : {0, 1}) {
    const bool named = errors[rank].find(" rank 2: ") != std::string::npos ||
                       errors[rank].find(fmt::format(" rank {}: ", first.load())) != std::string::npos;
    EXPECT_TRUE(named) << errors[rank];
    EXPECT_TRUE(errors[rank].starts_with(fmt::format("rank {} ", rank))) << errors[rank];
    EXPECT_EQ(errors[rank].find('\n'), std::string::npos) << errors[rank];
  }
}

TEST(GlooGroup, AfterARankHasLeftLaterCollectivesFailAsWell) {
  const auto begin = std::chrono::steady_clock::now();
  const auto errors = run_gloo(2, [](ProcessGroup& group) {
    group.exchange(std::vector<double>{1});
    if (group.world().rank == 1) throw std::runtime_error("leaves");
    const at::Tensor parts = at::ones({2 * 100000});
    // In the same way, whether they can be started or not.
    for (int i = 0; i < 3; ++i) {
      EXPECT_THROW(group.reduce_scatter(parts, at::empty_like(parts), at::empty({100000}), false)->wait(),
                   EnvironmentError);
      EXPECT_THROW(group.exchange(std::vector<double>{1}), EnvironmentError);
    }
  });
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  EXPECT_EQ(errors, (std::vector<std::string>{"", "leaves"}));
}

TEST(GlooGroup, ASilentRankIsNamedAfterTheTimeout) {
  constexpr int64_t kTimeout = 5;
  std::atomic<int> waiting = 2;
  const auto errors = run_gloo(
      3,
      [&](ProcessGroup& group) {
        group.exchange(std::vector<double>{1});
        if (group.world().rank == 1) {
          while (waiting > 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
          return;
        }
        const auto begin = std::chrono::steady_clock::now();
        const at::Tensor whole = at::empty({3 * 1000});
        const auto work = group.all_gather(whole, at::ones({1000}));
        try {
          work->wait();
          ADD_FAILURE() << "a rank has not taken part";
        } catch (...) {
          const auto waited = std::chrono::steady_clock::now() - begin;
          EXPECT_GE(waited, std::chrono::milliseconds(4900));
          EXPECT_LT(waited, std::chrono::seconds(kTimeout + 10));
          // Those that wait for the same rank give up at the same time.
          --waiting;
          while (waiting > 0) std::this_thread::sleep_for(std::chrono::milliseconds(20));
          throw;
        }
      },
      kTimeout);
  EXPECT_EQ(errors[1], "");
  EXPECT_TRUE(errors[0].starts_with("rank 0 receives from rank 1: ")) << errors[0];
  EXPECT_TRUE(errors[2].starts_with("rank 2 receives from rank 1: ")) << errors[2];
}

TEST(GlooGroup, MissingRanksAreNamed) {
  const auto store = make_memory_store();
  const auto errors = run_ranks(2, [&](const World& world) {
    make_gloo_group(store->store(), {world.rank * 3, 5}, 1, "127.0.0.1");
  });
  for (const std::string& error : errors) {
    EXPECT_EQ(error, "5 ranks were to meet within 1 s: ranks 1, 2, 4 did not come");
  }
}

TEST(GlooGroup, AnAddressThatIsNotOursIsAnError) {
  const auto store = make_memory_store();
  const auto errors = run_ranks(1, [&](const World& world) {
    make_gloo_group(store->store(), world, 5, "192.0.2.1");  // reserved for documentation
  });
  EXPECT_TRUE(errors[0].starts_with("rank 0 cannot connect to the other 0 by Gloo: ")) << errors[0];
}

TEST(GlooGroup, NobodyLosesDataToARankThatEndsEarly) {
  for (int round = 0; round < 5; ++round) {
    const auto errors = run_gloo(4, [&](ProcessGroup& group) {
      const at::Tensor part = at::full({250000}, static_cast<float>(group.world().rank));
      const at::Tensor whole = at::empty({4 * 250000});
      group.all_gather(whole, part)->wait();
      EXPECT_EQ(whole.sum(at::kDouble).item<double>(), 6.0 * 250000);
      group.shut_down();
    });
    EXPECT_EQ(errors, none_of(4));
  }
}

TEST(GlooGroup, AGroupThatHasEndedRefusesCollectives) {
  const auto errors = run_gloo(2, [](ProcessGroup& group) {
    group.shut_down();
    EXPECT_THROW(group.exchange(std::vector<double>{1}), c10::Error);
  });
  EXPECT_EQ(errors, none_of(2));
}

double processor_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

TEST(GlooGroup, WaitingCostsNoProcessorTime) {
  const auto errors = run_gloo(4, [](ProcessGroup& group) {
    group.exchange(std::vector<double>{1});
    if (group.world().rank == 3) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
      const double before = processor_seconds();
      std::this_thread::sleep_for(std::chrono::seconds(2));
      // Of the 2 s; a single thread that spins would take all of them.
      EXPECT_LT(processor_seconds() - before, 0.5);
    }
    group.exchange(std::vector<double>{1});
    group.shut_down();
  });
  EXPECT_EQ(errors, none_of(4));
}

TEST(GlooGroup, TheProcessHasOneOpenMpAndNoSecondGloo) {
  const auto errors = run_gloo(2, [](ProcessGroup& group) { group.shut_down(); });
  EXPECT_EQ(errors, none_of(2));
  std::set<std::string> openmp;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t path = line.find('/');
    if (path == std::string::npos) continue;
    const std::string file = line.substr(path);
    if (file.find("omp") != std::string::npos && file.find(".so") != std::string::npos) openmp.insert(file);
    EXPECT_EQ(file.find("libgloo"), std::string::npos) << file;
  }
  ASSERT_EQ(openmp.size(), 1) << ::testing::PrintToString(openmp);
  EXPECT_NE(openmp.begin()->find("libgomp"), std::string::npos) << *openmp.begin();
}

TEST(LocalGroup, IsAGroupOfOne) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const auto group = make_local_group();
    EXPECT_EQ(group->world().size, 1);
    const at::Tensor parts = numbers(5001, type, 1), scratch = at::empty_like(parts);
    at::Tensor sum = at::full({5001}, std::nan(""), sum_type(type));
    group->reduce_scatter(parts, scratch, sum, false)->wait();
    EXPECT_TRUE(same_bits(sum, parts.to(sum_type(type))));
    group->reduce_scatter(parts, scratch, sum, true)->wait();
    EXPECT_TRUE(same_bits(sum, parts.to(sum_type(type)).mul(2)));
    const at::Tensor whole = at::zeros_like(parts);
    group->all_gather(whole, parts)->wait();
    group->all_gather(whole, whole)->wait();
    EXPECT_TRUE(same_bits(whole, parts));
    expect_exchanged(*group);
    EXPECT_EQ(group->traffic().reduced + group->traffic().gathered + group->traffic().other, 0);
    EXPECT_EQ(group->traffic().collectives, 5);
    group->shut_down();
  }
}

TEST(LocalGroup, ConvertsEveryFp16Number) {
  at::Tensor bits = at::arange(65536, at::kInt).to(at::kUInt16);
  const at::Tensor halves = bits.view(at::kHalf);
  const at::Tensor sum = at::empty({65536});
  make_local_group()->reduce_scatter(halves, halves, sum, false)->wait();
  const at::Tensor expected = halves.to(at::kFloat);
  int nans = 0;
  for (int64_t i = 0; i < 65536; ++i) {
    const float found = sum.const_data_ptr<float>()[i], wanted = expected.const_data_ptr<float>()[i];
    nans += std::isnan(wanted) ? 1 : 0;
    ASSERT_TRUE(std::isnan(wanted) ? std::isnan(found)
                                   : std::bit_cast<uint32_t>(found) == std::bit_cast<uint32_t>(wanted))
        << i;
  }
  EXPECT_EQ(nans, 2046);
}

TEST(SumOverRanks, AddsInRankOrder) {
  const std::vector<double> all = {1e16, 1, 1, 2, -1e16, 3};
  EXPECT_EQ(sum_over_ranks(all, 3), (std::vector<double>{(1e16 + 1) - 1e16, 6}));
  EXPECT_EQ(sum_over_ranks(std::vector<double>{}, 2), std::vector<double>{});
}

TEST(NcclGroup, WithoutACardIsAnError) {
  if (at::hasCUDA()) GTEST_SKIP() << "there is a card";
  const auto store = make_memory_store();
  const auto errors = run_ranks(
      1, [&](const World& world) { make_nccl_group(store->store(), world, at::Device(at::kCUDA, 0), 5); });
  EXPECT_NE(errors[0].find("NCCL"), std::string::npos) << errors[0];
  EXPECT_EQ(errors[0].find('\n'), std::string::npos) << errors[0];
}

TEST(NcclGroup, OfOneRankEqualsTheLocalGroup) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  const auto store = make_memory_store();
  const auto group = make_nccl_group(store->store(), World{}, at::Device(at::kCUDA, 0), 60);
  const at::Tensor parts = numbers(5001, at::kBFloat16, 1).cuda();
  const at::Tensor sum = at::ones({5001}, parts.options().dtype(at::kFloat));
  group->reduce_scatter(parts, at::empty_like(parts), sum, true)->wait();
  EXPECT_TRUE(same_bits(sum.cpu(), parts.cpu().to(at::kFloat).add(1)));
  const at::Tensor whole = at::empty_like(parts);
  group->all_gather(whole, parts)->wait();
  EXPECT_TRUE(same_bits(whole.cpu(), parts.cpu()));
  expect_exchanged(*group);
  group->shut_down();
}

}  // namespace
}  // namespace satune::trainer_test
