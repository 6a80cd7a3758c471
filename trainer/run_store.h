// The key-value store in which the ranks of a run meet: c10d's TCPStore, opened by rank 0 or by torchrun's
// agent.
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

/// One connection. Keys are those of this attempt of the run (a restart sees none of the earlier one's).
/// Calls on one connection exclude each other; what the server does not answer throws EnvironmentError.
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
  /// For the process groups of c10d.
  virtual c10d::Store& store() = 0;
};

/// The server that rank 0 (or the launcher) holds, as long as it lives. `port` 0 = any free one.
class StoreServer {
 public:
  virtual ~StoreServer() = default;
  virtual uint16_t port() const = 0;
};
std::unique_ptr<StoreServer> open_store_server(uint16_t port);

/// Connects as `environment` says; waits up to `timeout` for the server. Throws EnvironmentError naming
/// address and port.
std::shared_ptr<RunStore> connect_store(const RankEnvironment& environment, std::chrono::seconds timeout);

/// In memory, for a process alone and for tests with ranks as threads.
std::shared_ptr<RunStore> make_memory_store();

}  // namespace satune
