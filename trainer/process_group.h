// Collectives between the ranks that share one model, and the store they meet in. A group of one is a group:
// its collectives copy, so no caller asks for the size.
//
// Buffers are 1-D and contiguous. Every rank calls the same collectives in the same order. A collective
// starts when it is called and is complete, for the device's current stream, when wait() has returned; its
// buffers must live and stay untouched until then. On the CPU wait() blocks; on a card it makes the stream
// wait, and the host waits wherever it next waits for that stream. Whoever calls names start, wait and such
// places (trainer/collective.h).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trainer/rank_environment.h"
#include "trainer/shard.h"

namespace c10d {
class Store;
}

namespace satune {

/// A collective in flight. Dropped without wait() it goes on, keeps its buffers alive, and leaves the group
/// as it is; what it should have computed is lost.
class Work {
 public:
  virtual ~Work() = default;
  /// Throws EnvironmentError when a peer is gone or the group's timeout has passed since wait() was called.
  /// On Gloo the message names the first peer whose transfer failed, in the order of the ranks. On a card
  /// that is not noticed here: the stream would wait for ever, and the Coordinator's time limit ends the
  /// process when the host waits for the stream in a named place.
  virtual void wait() = 0;
};

/// Bytes that this rank sent to others, by what for (counted from the sizes asked for, not on the wire).
struct Traffic {
  int64_t reduced = 0, gathered = 0, other = 0;
  int64_t collectives = 0;
};

class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;

  const World& world() const { return world_; }
  const Traffic& traffic() const { return traffic_; }

  /// `parts` holds size() equal parts; part r of every rank is summed into rank r's `sum` (fp32 from fp32,
  /// bf16 or fp16 parts, fp64 from fp64; parts.numel() / size() elements) by sum_parts(), on every device:
  /// in rank order in sum's type, from what is there on with `accumulate`. So the bits depend on the addends
  /// alone, not on how buffers are cut, and n ranks that accumulate k batches add as one rank does that
  /// accumulates n * k. `scratch`: as large as `parts`, of its type, not read before it is written.
  virtual std::unique_ptr<Work> reduce_scatter(const at::Tensor& parts, const at::Tensor& scratch,
                                               const at::Tensor& sum, bool accumulate) = 0;

  /// `whole` = every rank's `part` in rank order. `part` may be whole's own slice of this rank (in place).
  virtual std::unique_ptr<Work> all_gather(const at::Tensor& whole, const at::Tensor& part) = 0;

  /// Every rank's numbers, rank by rank: size() * values.size() doubles, bit for bit. Blocks. `values` has
  /// the same size on every rank.
  virtual std::vector<double> exchange(std::span<const double> values) = 0;

  /// Every rank's vector of fp64 numbers, rank by rank: [size() * numel()], on the group's device, where
  /// `numbers` are. Blocks on the CPU; on a card the result is queued behind what is.
  virtual at::Tensor gather(const at::Tensor& numbers) = 0;

  /// Ends the group in an orderly way: all ranks call it, with nothing in flight. Throws as wait() does.
  virtual void shut_down() {}
  /// Ends it at once when something failed: what the peers wait for fails. The last call on the group.
  virtual void abort() {}

 protected:
  explicit ProcessGroup(const World& world) : world_(world) {}
  World world_;
  Traffic traffic_;
};

/// The group of one.
std::unique_ptr<ProcessGroup> make_local_group();

/// Gloo, for tensors on the CPU. `store` is kept alive by reference count and used while the group is made,
/// which blocks it for other callers; one group a store (c10d::PrefixStore makes several out of one).
/// `timeout_seconds` bounds each collective. `address`: the local one to listen on, as
/// network_address() finds it; "" = that of this machine's name, else the loopback; GLOO_SOCKET_IFNAME, a
/// list of interfaces, goes before both. Throws EnvironmentError when the ranks do not meet in time, naming
/// those that did not come.
std::unique_ptr<ProcessGroup> make_gloo_group(c10d::Store& store, const World& world, int64_t timeout_seconds,
                                              const std::string& address = {});

/// NCCL on `device`, which has an index. `store` as above, and used by c10d's threads for as long as the
/// group lives. Throws EnvironmentError where this build has no NCCL, there is no such card or the ranks do
/// not meet in time.
std::unique_ptr<ProcessGroup> make_nccl_group(c10d::Store& store, const World& world,
                                              const at::Device& device, int64_t timeout_seconds);

/// Sums of each number over the ranks of an exchange, in rank order. `all` is what exchange() returned.
std::vector<double> sum_over_ranks(std::span<const double> all, int64_t world_size);

}  // namespace satune
