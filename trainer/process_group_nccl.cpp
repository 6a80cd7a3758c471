#include "trainer/process_group.h"

#ifdef SATUNE_NCCL
#define USE_C10D_NCCL 1
#include <ATen/ATen.h>
#include <ATen/DeviceGuard.h>

#include <cstdlib>
#include <functional>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <utility>

#include "trainer/rendezvous.h"
#include "trainer/sum_parts.h"
#endif

#include "data/files/error.h"
#include "trainer/c10d_messages.h"

namespace satune {

#ifdef SATUNE_NCCL
namespace {

class StreamWork final : public Work {
 public:
  StreamWork(c10::intrusive_ptr<c10d::Work> work, std::function<void()> finish)
      : work_(std::move(work)), finish_(std::move(finish)) {}

  void wait() override {
    if (!work_) return;
    try {
      std::exchange(work_, {})->wait();
    } catch (const c10::Error& error) {
      throw EnvironmentError("NCCL: " + one_line(error));
    }
    if (finish_) std::exchange(finish_, {})();
  }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::function<void()> finish_;
};

class NcclGroup final : public ProcessGroup {
 public:
  NcclGroup(const World& world, const at::Device& device, c10::intrusive_ptr<c10d::Backend> backend)
      : ProcessGroup(world), device_(device), backend_(std::move(backend)) {}

  /// All-to-all and our own sum instead of NCCL's reduce-scatter. NCCL adds in the type of the parts, bf16
  /// at every hop of a ring, and in an order that its tuner picks by size, topology and version: a resumed
  /// run would not repeat its bits, nor equal one on the CPU. Between the cards of one machine both move the
  /// same bytes, (n-1)/n of the parts. Between machines of g cards an all-to-all moves up to g times what a
  /// ring does: shard within a machine and replicate across there, which sends each shard to its peers only.
  std::unique_ptr<Work> reduce_scatter(const at::Tensor& parts, const at::Tensor& scratch,
                                       const at::Tensor& sum, bool accumulate) override {
    TORCH_CHECK(parts.numel() == sum.numel() * world_.size && scratch.numel() == parts.numel() &&
                scratch.scalar_type() == parts.scalar_type());
    traffic_.reduced += static_cast<int64_t>(sum.numel() * parts.itemsize()) * (world_.size - 1);
    ++traffic_.collectives;
    at::Tensor from = parts, to = scratch;
    std::vector<int64_t> equal;
    auto addends = scratch.chunk(world_.size);
    return start([&] { return backend_->alltoall_base(to, from, equal, equal); },
                 [addends = std::move(addends), sum, accumulate] { sum_parts(addends, sum, accumulate); });
  }

  std::unique_ptr<Work> all_gather(const at::Tensor& whole, const at::Tensor& part) override {
    TORCH_CHECK(whole.numel() == part.numel() * world_.size && whole.scalar_type() == part.scalar_type());
    traffic_.gathered += static_cast<int64_t>(part.nbytes()) * (world_.size - 1);
    ++traffic_.collectives;
    at::Tensor to = whole, from = part;
    return start([&] { return backend_->_allgather_base(to, from); }, {});
  }

  std::vector<double> exchange(std::span<const double> values) override {
    const at::Tensor own =
        at::from_blob(const_cast<double*>(values.data()), {static_cast<int64_t>(values.size())}, at::kDouble);
    const at::Tensor all = gather(own.to(device_)).cpu();
    const double* numbers = all.const_data_ptr<double>();
    return {numbers, numbers + all.numel()};
  }

  at::Tensor gather(const at::Tensor& numbers) override {
    traffic_.other += static_cast<int64_t>(numbers.nbytes()) * (world_.size - 1);
    ++traffic_.collectives;
    at::Tensor whole = at::empty({numbers.numel() * world_.size}, numbers.options()), own = numbers;
    start([&] { return backend_->_allgather_base(whole, own); }, {})->wait();
    return whole;
  }

  void shut_down() override {
    // The communicator may go only when the streams have done with it, on every rank.
    const double done = 1;
    try {
      exchange({&done, 1});
      std::exchange(backend_, {})->shutdown();
    } catch (const EnvironmentError&) {
      throw;
    } catch (const std::exception& error) {
      throw EnvironmentError("NCCL: " + one_line(error));
    }
  }

  void abort() override {
    if (backend_) std::exchange(backend_, {})->abort();
  }

 private:
  template <typename Start>
  std::unique_ptr<Work> start(const Start& collective, std::function<void()> finish) {
    TORCH_CHECK(backend_, "collective on a group that has ended");
    const c10::DeviceGuard guard(device_);
    try {
      return std::make_unique<StreamWork>(collective(), std::move(finish));
    } catch (const c10::DistBackendError& error) {
      throw EnvironmentError("NCCL: " + one_line(error));
    }
  }

  at::Device device_;
  c10::intrusive_ptr<c10d::Backend> backend_;
};

}  // namespace

std::unique_ptr<ProcessGroup> make_nccl_group(c10d::Store& store, const World& world,
                                              const at::Device& device, int64_t timeout_seconds) {
  quiet_c10d();
  // c10d would end the process by itself, without a word to the other ranks; torchrun sets this to 1.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", 1);
  // The same from a thread that watches c10d's own watch thread.
  ::setenv("TORCH_NCCL_ENABLE_MONITORING", "0", 0);
  // NCCL itself waits for missing ranks without limit.
  meet(store, world, timeout_seconds);
  try {
    const c10::DeviceGuard guard(device);
    auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
    options->timeout = std::chrono::seconds(timeout_seconds);
    auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        c10::make_intrusive<c10d::PrefixStore>(
            "nccl", c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(&store)),
        static_cast<int>(world.rank), static_cast<int>(world.size), std::move(options));
    backend->setBoundDeviceId(device);
    backend->eagerConnectSingleDevice(device);
    return std::make_unique<NcclGroup>(world, device, std::move(backend));
  } catch (const c10::Error& error) {
    throw EnvironmentError(fmt::format("rank {} cannot connect to the other {} by NCCL: {}", world.rank,
                                       world.size - 1, one_line(error)));
  }
}
#else
std::unique_ptr<ProcessGroup> make_nccl_group(c10d::Store&, const World&, const at::Device&, int64_t) {
  throw EnvironmentError("NCCL: this build has none; configure it where nccl.h and libnccl are found");
}
#endif

}  // namespace satune
