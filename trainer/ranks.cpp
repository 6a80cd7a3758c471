#include "trainer/ranks.h"

#include <fmt/format.h>
#include <netdb.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "data/files/error.h"
#include "trainer/attempt.h"
#include "trainer/collective.h"
#include "trainer/failure_report.h"
#include "trainer/network_address.h"

namespace satune {
namespace {

/// After a stall was named, before a collective gives up by itself.
constexpr int64_t kTransportSlack = 60;

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "?";
}

bool resolves(const std::string& host) {
  addrinfo* found = nullptr;
  const bool known = ::getaddrinfo(host.c_str(), nullptr, nullptr, &found) == 0;
  if (known) ::freeaddrinfo(found);
  return known;
}

// What a launcher reads: of a lost rank the failure, also where this process was asked to stop by whoever saw
// that rank die, and ends with 4 itself.
int code_of_cause(int exit_code) {
  return exit_code == kExitResumable ? kExitEnvironment : exit_code;
}

CoordinatorOptions coordinator_options(const Settings& settings) {
  CoordinatorOptions options;
  options.lost_after = static_cast<double>(settings.heartbeat_timeout);
  options.stalled_after = options.start_within = static_cast<double>(settings.ddp_timeout);
  return options;
}

}  // namespace

Ranks::Ranks(const RankEnvironment& environment, const Settings& settings, SignalWatch& signals,
             Report report)
    : environment_(environment),
      signals_(signals),
      report_(std::move(report)),
      timeout_seconds_(settings.ddp_timeout) {
  if (environment.world.size == 1) {
    coordinator_ = make_solo_coordinator(signals);
    return;
  }
  const std::chrono::seconds timeout(timeout_seconds_);
  notice_.emplace(fmt::format(
      "rank {} of {} waits for the others, for {} s (ddp_timeout) at most; the store is at {}:{}{}",
      environment.world.rank, environment.world.size, timeout_seconds_, environment.master_address,
      environment.master_port,
      resolves(environment.master_address) ? "" : ", a name that does not resolve (MASTER_ADDR)"));
  environment_ = agree_on_attempt(environment, timeout);
  const auto connect = [environment = environment_, timeout] { return connect_store(environment, timeout); };
  store_ = connect();
  signals.defer_stop();  // a rank that ended at once would be lost to the others
  coordinator_ = make_coordinator(environment_, signals, coordinator_options(settings), connect,
                                  [this](const RunFailed& failure) { end_process(failure); });
}

void Ranks::meet() {
  if (world().size == 1) return;
  constexpr const char* kWorldSize = "world size";
  const std::string own = std::to_string(world().size);
  if (is_leader()) {
    coordinator_->publish(kWorldSize, own);
  } else if (const std::string expected = coordinator_->wait_for(kWorldSize); expected != own) {
    throw bad_input("WORLD_SIZE", fmt::format("{} on rank {}", own, world().rank),
                    fmt::format("{}, that of rank 0", expected));
  }
  coordinator_->barrier("met");
  notice_.reset();
}

Ranks::~Ranks() = default;

void Ranks::one_before_the_others(const std::string& name, const std::function<void()>& prepare) {
  const std::string first = name + "/first", host = name + "/" + host_name();
  if (is_leader()) {
    prepare();
    coordinator_->publish(first, "done");
    return;
  }
  coordinator_->wait_for(first);
  // By arrival: a script's LOCAL_RANK need not be 0 on any rank of a machine.
  const bool first_here = store_->add(host + "/arrived", 1) == 1;
  if (!first_here) coordinator_->wait_for(host);
  prepare();
  if (first_here) coordinator_->publish(host, "done");
}

std::unique_ptr<ProcessGroup> Ranks::connect_group(const std::string& name, const World& world,
                                                   const at::Device& device) {
  if (world.size == 1) return make_local_group();
  const int64_t timeout = timeout_seconds_ + kTransportSlack;
  const auto store = c10::make_intrusive<c10d::PrefixStore>(
      name, c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(&store_->store()));
  if (!device.is_cpu()) return make_nccl_group(*store, world, device, timeout);
  return make_gloo_group(*store, world, timeout, network_address(environment_));
}

void Ranks::connect_groups(const at::Device& device, int64_t shard_group_size) {
  const auto [rank, size] = world();
  const int64_t shard_group = rank / shard_group_size, share = rank % shard_group_size;
  const int64_t replicas = size / shard_group_size;
  in_collective(*coordinator_, "connection of the process groups", [&] {
    all_ = connect_group("all", world(), device);
    if (replicas > 1) {
      shards_ = connect_group(fmt::format("shards-{}", shard_group), {share, shard_group_size}, device);
    }
    replicas_ = connect_group(fmt::format("replicas-{}", share), {shard_group, replicas}, device);
  });
  groups_.emplace(ProcessGroups{*all_, shards_ ? *shards_ : *all_, *replicas_});
}

Traffic Ranks::traffic() const {
  Traffic sum;
  for (const ProcessGroup* group : {all_.get(), shards_.get(), replicas_.get()}) {
    if (group == nullptr) continue;
    const Traffic& sent = group->traffic();
    sum.reduced += sent.reduced;
    sum.gathered += sent.gathered;
    sum.other += sent.other;
    sum.collectives += sent.collectives;
  }
  return sum;
}

void Ranks::defer_stop() {
  signals_.defer_stop();
  coordinator_->defer_stop();
}

void Ranks::end_at_once(std::string_view left) {
  if (is_leader()) signals_.say_at_stop(stop_line(left));
  coordinator_->end_at_once();
  if (world().size == 1) signals_.end_at_once();  // else the coordinator's thread sees a signal
}

void Ranks::end() {
  coordinator_->barrier("end");
  in_collective(*coordinator_, "end of the process groups", [&] {
    for (ProcessGroup* group : {replicas_.get(), shards_.get(), all_.get()}) {
      if (group != nullptr) group->shut_down();
    }
  });
  coordinator_->leave();
}

void Ranks::end_process(const RunFailed& failure) {
  if (failure.is_stop()) signals_.end_stopped();
  if (report_) report_(failure.what(), code_of_cause(failure.exit_code()));
  std::_Exit(failure.exit_code());
}

void Ranks::end_failed() {
  Failure failure = current_failure();
  // What fails because another rank has failed (its folder is gone, its connection closed) is that failure.
  if (const int code = coordinator_->failure_code(); code != 0)
    failure = {coordinator_->explain(failure.message), code};
  const bool is_stop = coordinator_->failure_is_stop();
  // The report first: those of ranks that fail because of this one carry a later time.
  if (report_ && !is_stop) report_(failure.message, code_of_cause(failure.exit_code));
  coordinator_->announce_failure(failure.message, failure.exit_code);
  if (is_stop) signals_.end_stopped();
  std::_Exit(failure.exit_code);
}

}  // namespace satune
