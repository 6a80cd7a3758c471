#include "trainer/host_allocator.h"

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

namespace satune {
namespace {

constexpr int64_t kBytes = int64_t{8} << 20;

// How far the heap grows while a buffer comes and goes sixteen times, small things settling around it.
int64_t heap_growth() {
  std::vector<void*> between;
  at::Tensor buffer = at::empty({kBytes}, at::kByte);
  between.push_back(std::malloc(4000));
  const auto before = static_cast<int64_t>(mallinfo2().arena);
  for (int i = 0; i < 16; ++i) {
    buffer = at::Tensor();
    buffer = at::empty({kBytes}, at::kByte);
    between.push_back(std::malloc(4000));
  }
  const auto growth = static_cast<int64_t>(mallinfo2().arena) - before;
  for (void* small : between) std::free(small);
  return growth;
}

// Each in a process of its own, whose allocator it sets.
[[noreturn]] void check_reuse() {
  set_up_host_memory();
  std::_Exit(heap_growth() < kBytes ? 0 : 1);
}

[[noreturn]] void check_what_libtorch_expects() {
  set_up_host_memory();
  bool good = true;
  for (int64_t bytes : {1, 15, 63, 64, 65, 4096, 1 << 20, 40 << 20}) {
    at::Tensor tensor = at::full({bytes}, 7, at::kByte);
    good &= reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 64 == 0;
    tensor.resize_({2 * bytes});  // allocates, copies, frees
    good &= tensor.narrow(0, 0, bytes).eq(7).all().item<bool>();
  }
  good &= at::empty({0}).numel() == 0;
  void* const raw = c10::GetCPUAllocator()->raw_allocate(100);
  c10::GetCPUAllocator()->raw_deallocate(raw);
  try {
    at::empty({int64_t{1} << 60}, at::kByte);
    good = false;
  } catch (const c10::Error& error) {
    good &= std::string(error.what()).find("can't allocate memory") != std::string::npos;
  }
  std::_Exit(good ? 0 : 1);
}

TEST(HostAllocator, ABufferGoesWhereOneOfItsSizeWas) {
  EXPECT_EXIT(check_reuse(), testing::ExitedWithCode(0), "");
}

TEST(HostAllocator, GivesWhatLibTorchExpects) {
  EXPECT_EXIT(check_what_libtorch_expects(), testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace satune
