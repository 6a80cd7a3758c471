#include "trainer/host_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>
#include <malloc.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace satune {
namespace {

constexpr size_t kHeader = c10::gAlignment;  // keeps the address that malloc gave

void free_aligned(void* data) {
  if (data != nullptr) std::free(static_cast<void**>(data)[-1]);
}

class HostAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::kCPU);
    if (bytes == 0) return {nullptr, nullptr, &free_aligned, cpu};
    void* const start = bytes > SIZE_MAX - kHeader ? nullptr : std::malloc(bytes + kHeader);
    // The words by which LibTorch's own allocator is known.
    TORCH_CHECK(start != nullptr, "can't allocate memory: ", bytes, " bytes were asked for");
    // malloc aligns to 16 bytes, so that between 16 and 64 of the header are left.
    const auto address = reinterpret_cast<std::uintptr_t>(start);
    void* const data = static_cast<char*>(start) + (kHeader - address % kHeader);
    static_cast<void**>(data)[-1] = start;
    return {data, data, &free_aligned, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_aligned; }

  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

}  // namespace

void set_up_host_memory() {
  mallopt(M_MMAP_THRESHOLD, kHeapLimit);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", std::to_string(kKeptProducts).c_str(), /*overwrite=*/0);
  static HostAllocator allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/1);
}

}  // namespace satune
