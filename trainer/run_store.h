// The key-value store in which the ranks of a run meet: c10d's TCPStore, opened by rank 0, by our launcher or
// by torchrun's agent.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/rank_environment.h"

namespace c10d {
class Store;
}

namespace satune {

/// One connection. Keys are those of one attempt of the run: a restart sees none of the earlier one's.
/// Calls on one connection exclude each other. What the server does not answer in time throws
/// EnvironmentError naming address and port, and so does every later call: also where its process is stopped
/// or its machine gone without a word. set() is sent and not answered, so that it may return before it is
/// known that nobody listens any more.
class RunStore {
 public:
  virtual ~RunStore() = default;

  virtual void set(const std::string& key, const std::string& value) = 0;
  /// nullopt when it is not there (does not wait).
  virtual std::optional<std::string> get(const std::string& key) = 0;
  /// In the order of the keys.
  virtual std::vector<std::optional<std::string>> get_all(const std::vector<std::string>& keys) = 0;
  /// Adds and returns the sum; a new key starts at 0.
  virtual int64_t add(const std::string& key, int64_t value) = 0;
  /// For the process groups of c10d: the same keys over the same connection, which a call that waits there
  /// blocks for everybody, and without the time limit above.
  virtual c10d::Store& store() = 0;
};

/// A server, which answers as long as the object lives.
class StoreServer {
 public:
  virtual ~StoreServer() = default;
  virtual uint16_t port() const = 0;
};
/// For a launcher that starts ranks on its own machine: on 127.0.0.1 alone. `port` 0 = any free one. Throws
/// EnvironmentError naming the port when it is taken.
std::unique_ptr<StoreServer> open_store_server(uint16_t port);

/// Connects to the server at the environment's address and port; waits up to `timeout` for it, and as long
/// for each answer. Where no agent holds the store (`agent_store` is false; our launcher sets it too), rank 0
/// opens the server on all addresses of its machine: its connections share it, and it ends with the last of
/// them. Keys are those of the environment's run_id and `attempt` (restart_count where it is ""). Throws
/// EnvironmentError naming address and port.
std::shared_ptr<RunStore> connect_store(const RankEnvironment& environment, std::chrono::seconds timeout);

/// In memory, for a process alone and for tests with ranks as threads, which share the one object.
std::shared_ptr<RunStore> make_memory_store();

}  // namespace satune
