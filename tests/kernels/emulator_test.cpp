// What the emulation must find, since every other test here relies on it.
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "model/ops/cuda_reduce.cuh"

namespace satune {
namespace {

using emulation::Order;
using emulation::run;

std::string error_of(const std::function<void()>& kernel, unsigned threads) {
  try {
    run("kernel", 1, threads, kernel);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

TEST(CudaEmulation, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> counts(3 * 2 * 40);
  run("count", {3, 2}, 40,
      [&] { ++counts[(blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x]; });
  EXPECT_EQ(counts, std::vector<int>(3 * 2 * 40, 1));
}

TEST(CudaEmulation, ReductionsCoverAllThreads) {
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kShuffled}) {
    emulation::set_order(order);
    std::vector<int> sums(96), largest(96);
    run("reduce", 1, 96, [&] {
      __shared__ cuda::ReduceSpace<int> sum_space, max_space;
      const int mine = static_cast<int>(threadIdx.x);
      sums[threadIdx.x] = cuda::reduce_block<cuda::Sum>(mine, sum_space);
      largest[threadIdx.x] = cuda::reduce_block<cuda::Max>(mine, max_space);
    });
    EXPECT_EQ(sums, std::vector<int>(96, 95 * 96 / 2));
    EXPECT_EQ(largest, std::vector<int>(96, 95));
  }
  emulation::set_order(Order::kAscending);
}

TEST(CudaEmulation, ThreadsThatPartWaysAreAnError) {
  const std::string apart = error_of(
      [] {
        if (threadIdx.x < 16) {
          __syncthreads();
        } else {
          __syncthreads();
        }
      },
      64);
  EXPECT_NE(apart.find("part ways"), std::string::npos) << apart;
  const std::string ended = error_of(
      [] {
        if (threadIdx.x != 3) __syncthreads();
      },
      32);
  EXPECT_NE(ended.find("thread 3 has ended"), std::string::npos) << ended;
  const std::string half_a_warp = error_of([] { __shfl_xor_sync(0xffffffffU, 1.0F, 1); }, 48);
  EXPECT_NE(half_a_warp.find("lanes that the block does not have"), std::string::npos) << half_a_warp;
  const std::string absent = error_of(
      [] {
        if (threadIdx.x < 31) __shfl_xor_sync(0xffffffffU, 1.0F, 1);
      },
      32);
  EXPECT_NE(absent.find("thread 31 has ended"), std::string::npos) << absent;
}

/// Each thread reads what its neighbour wrote; without the barrier that depends on who was first.
std::vector<int> neighbours(Order order, bool with_barrier) {
  emulation::set_order(order);
  std::vector<int> seen(32);
  run("neighbours", 1, 32, [&] {
    __shared__ int written[32];
    written[threadIdx.x] = -1;
    __syncthreads();
    written[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (with_barrier) __syncthreads();
    seen[threadIdx.x] = written[(threadIdx.x + 1) % 32];
  });
  emulation::set_order(Order::kAscending);
  return seen;
}

TEST(CudaEmulation, AMissingBarrierShowsInTheOrderOfThreads) {
  EXPECT_EQ(neighbours(Order::kAscending, true), neighbours(Order::kDescending, true));
  EXPECT_NE(neighbours(Order::kAscending, false), neighbours(Order::kDescending, false));
}

TEST(CudaEmulation, GridsThatNoCardTakesAreAnError) {
  EXPECT_THROW(run("wide", 1, 1025, [] {}), std::runtime_error);
  EXPECT_THROW(run("tall", {1, 65536}, 1, [] {}), std::runtime_error);
  EXPECT_THROW(run("empty", 0, 32, [] {}), std::runtime_error);
}

}  // namespace
}  // namespace satune
