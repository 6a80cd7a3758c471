// Gloo's part of c10d is declared only where this is set. The Gloo that LibTorch carries is newer than the
// system's headers: nothing here may call or construct one of Gloo's own classes. ProcessGroupGloo holds them
// by pointers, whose sizes are the same.
#define USE_C10D_GLOO 1
#include <ATen/ATen.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <utility>

#include "data/files/error.h"
#include "trainer/c10d_messages.h"
#include "trainer/process_group.h"
#include "trainer/rendezvous.h"
#include "trainer/sum_parts.h"

namespace satune {
namespace {

using Milliseconds = std::chrono::milliseconds;

struct Transfer {
  int64_t peer;
  bool sends;
  c10::intrusive_ptr<c10d::Work> work;
};

[[noreturn]] void fail(const World& world, int64_t peer, bool sends, const std::string& cause) {
  throw EnvironmentError(
      fmt::format("rank {} {} rank {}: {}", world.rank, sends ? "sends to" : "receives from", peer, cause));
}

/// Sends and receipts between this rank and its peers, all under way at once. Each keeps its buffer alive.
class Transfers {
 public:
  Transfers(const World& world, Milliseconds timeout) : world_(world), timeout_(timeout) {}

  /// Starts one by `start`, which returns c10d's work.
  template <typename Start>
  void add(int64_t peer, bool sends, const Start& start) {
    try {
      pending_.push_back({peer, sends, start()});
    } catch (const std::exception& error) {  // the connection is broken already
      fail(world_, peer, sends, one_line(error));
    }
  }

  bool done() const { return pending_.empty(); }

  void wait() {
    const auto deadline = std::chrono::steady_clock::now() + timeout_;
    for (const Transfer& transfer : pending_) {
      const auto left = std::chrono::duration_cast<Milliseconds>(deadline - std::chrono::steady_clock::now());
      wait_for(transfer, std::max(left, Milliseconds(1)));
    }
    pending_.clear();
  }

 private:
  void wait_for(const Transfer& transfer, Milliseconds time) const {
    std::string cause = "aborted";
    try {
      if (transfer.work->wait(time)) return;
    } catch (const std::exception& error) {
      cause = one_line(error);
    }
    fail(world_, transfer.peer, transfer.sends, cause);
  }

  World world_;
  Milliseconds timeout_;
  std::vector<Transfer> pending_;
};

class GlooWork final : public Work {
 public:
  GlooWork(std::shared_ptr<Transfers> transfers, std::function<void()> finish)
      : transfers_(std::move(transfers)), finish_(std::move(finish)) {}

  void wait() override {
    transfers_->wait();
    if (finish_) std::exchange(finish_, {})();
  }

 private:
  std::shared_ptr<Transfers> transfers_;
  std::function<void()> finish_;
};

/// Collectives out of transfers between pairs of ranks, each straight from its source to its place. Gloo's
/// own would do for the bytes, but its all-gather goes through a copy of the whole (4 times
/// slower as measured), its reduce-scatter is an all-reduce, its all-to-all copies the own part, each keeps a
/// worker thread, and when a rank is missing none of them can say which. Here a live peer's data arrives
/// whatever the others do.
class GlooGroup final : public ProcessGroup {
 public:
  GlooGroup(const World& world, c10::intrusive_ptr<c10d::Backend> backend, Milliseconds timeout)
      : ProcessGroup(world), backend_(std::move(backend)), timeout_(timeout) {}

  std::unique_ptr<Work> reduce_scatter(const at::Tensor& parts, const at::Tensor& scratch,
                                       const at::Tensor& sum, bool accumulate) override {
    check(parts);
    check(scratch);
    TORCH_CHECK(parts.numel() == sum.numel() * world_.size && scratch.numel() == parts.numel() &&
                scratch.scalar_type() == parts.scalar_type());
    traffic_.reduced += static_cast<int64_t>(sum.numel() * parts.itemsize()) * (world_.size - 1);
    auto transfers = start([&](int64_t to) { return slice(parts, to); },
                           [&](int64_t from) { return slice(scratch, from); });
    std::vector<at::Tensor> addends;
    for (int64_t rank = 0; rank < world_.size; ++rank) {
      addends.push_back(slice(rank == world_.rank ? parts : scratch, rank));
    }
    return std::make_unique<GlooWork>(std::move(transfers), [addends = std::move(addends), sum, accumulate] {
      sum_parts(addends, sum, accumulate);
    });
  }

  std::unique_ptr<Work> all_gather(const at::Tensor& whole, const at::Tensor& part) override {
    traffic_.gathered += static_cast<int64_t>(part.nbytes()) * (world_.size - 1);
    return gather_parts(whole, part);
  }

  std::vector<double> exchange(std::span<const double> values) override {
    const at::Tensor all = gather(at::from_blob(const_cast<double*>(values.data()),
                                                {static_cast<int64_t>(values.size())}, at::kDouble));
    const auto* numbers = all.const_data_ptr<double>();
    return {numbers, numbers + all.numel()};
  }

  at::Tensor gather(const at::Tensor& numbers) override {
    traffic_.other += static_cast<int64_t>(numbers.nbytes()) * (world_.size - 1);
    // Memory that outlives an exception, because transfers with other peers go on.
    const at::Tensor whole = at::empty({numbers.numel() * world_.size}, at::kDouble);
    slice(whole, world_.rank).copy_(numbers);
    gather_parts(whole, slice(whole, world_.rank))->wait();
    return whole;
  }

  void shut_down() override {
    for (const auto& transfers : started_) transfers->wait();
    // A rank that leaves breaks its connections: nobody leaves before all have come here.
    const double done = 1;
    exchange({&done, 1});
    abort();
  }

  void abort() override {
    started_.clear();
    backend_.reset();
  }

 private:
  static void check(const at::Tensor& buffer) {
    TORCH_CHECK(buffer.is_cpu() && buffer.dim() == 1 && buffer.is_contiguous());
  }

  /// Rank `rank`'s part of `buffer`.
  at::Tensor slice(const at::Tensor& buffer, int64_t rank) const {
    const int64_t size = buffer.numel() / world_.size;
    return buffer.narrow(0, rank * size, size);
  }

  std::unique_ptr<Work> gather_parts(const at::Tensor& whole, const at::Tensor& part) {
    check(whole);
    check(part);
    TORCH_CHECK(whole.numel() == part.numel() * world_.size && whole.scalar_type() == part.scalar_type());
    auto transfers = start([&](int64_t) { return part; }, [&](int64_t from) { return slice(whole, from); });
    const at::Tensor own = slice(whole, world_.rank);
    if (own.const_data_ptr() != part.const_data_ptr()) own.copy_(part);
    return std::make_unique<GlooWork>(std::move(transfers), nullptr);
  }

  /// Starts what goes to each peer and what comes from it, every rank at another peer first.
  template <typename Outgoing, typename Incoming>
  std::shared_ptr<Transfers> start(const Outgoing& outgoing, const Incoming& incoming) {
    TORCH_CHECK(backend_, "collective on a group that has ended");
    const int tag = static_cast<int>(++traffic_.collectives & 0x7fffffff);
    std::erase_if(started_, [](const auto& transfers) { return transfers->done(); });
    auto transfers = std::make_shared<Transfers>(world_, timeout_);
    started_.push_back(transfers);
    for (int64_t step = 1; step < world_.size; ++step) {
      const int64_t from = (world_.rank + world_.size - step) % world_.size;
      std::vector<at::Tensor> buffer{incoming(from)};
      if (buffer[0].numel() == 0) return transfers;
      transfers->add(from, false, [&] { return backend_->recv(buffer, static_cast<int>(from), tag); });
    }
    for (int64_t step = 1; step < world_.size; ++step) {
      const int64_t to = (world_.rank + step) % world_.size;
      std::vector<at::Tensor> buffer{outgoing(to)};
      transfers->add(to, true, [&] { return backend_->send(buffer, static_cast<int>(to), tag); });
    }
    return transfers;
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  Milliseconds timeout_;
  // Also those that nobody will wait for: Gloo never recovers from a transfer that is dropped on its way.
  std::vector<std::shared_ptr<Transfers>> started_;
};

c10::intrusive_ptr<c10d::ProcessGroupGloo::Options> make_options(int64_t timeout_seconds,
                                                                 const std::string& address) {
  auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::seconds(timeout_seconds));
  options->threads = 1;  // none of our transfers uses one
  const char* interfaces = std::getenv("GLOO_SOCKET_IFNAME");
  if (interfaces != nullptr && *interfaces != '\0') {
    std::istringstream names(interfaces);
    for (std::string name; std::getline(names, name, ',');) {
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
    }
  } else {
    options->devices.push_back(address.empty() ? c10d::ProcessGroupGloo::createDefaultDevice()
                                               : c10d::ProcessGroupGloo::createDeviceForHostname(address));
  }
  return options;
}

}  // namespace

std::unique_ptr<ProcessGroup> make_gloo_group(c10d::Store& store, const World& world, int64_t timeout_seconds,
                                              const std::string& address) {
  quiet_c10d();
  meet(store, world, timeout_seconds);
  try {
    auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(
        c10::make_intrusive<c10d::PrefixStore>(
            "gloo", c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(&store)),
        static_cast<int>(world.rank), static_cast<int>(world.size), make_options(timeout_seconds, address));
    return std::make_unique<GlooGroup>(world, std::move(backend), std::chrono::seconds(timeout_seconds));
  } catch (const std::exception& error) {
    throw EnvironmentError(fmt::format("rank {} cannot connect to the other {} by Gloo: {}", world.rank,
                                       world.size - 1, one_line(error)));
  }
}

}  // namespace satune
