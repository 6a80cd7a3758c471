#include "trainer/run_store.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <type_traits>
#include <utility>

#include "data/files/error.h"
#include "trainer/c10d_messages.h"

namespace satune {
namespace {

using Store = c10::intrusive_ptr<c10d::Store>;

// A key never goes away, so that what check() has seen is there for a get() that does not wait.

std::optional<std::string> value_of(c10d::Store& store, const std::string& key) {
  if (!store.check({key})) return std::nullopt;
  return store.get_to_str(key);
}

std::vector<std::optional<std::string>> values_of(c10d::Store& store, const std::vector<std::string>& keys) {
  std::vector<std::optional<std::string>> values(keys.size());
  if (keys.empty()) return values;
  // All there, as they are most of the time: two round trips.
  std::vector<size_t> found;
  const bool all = store.check(keys);
  for (size_t i = 0; i < keys.size(); ++i) {
    if (all || store.check({keys[i]})) found.push_back(i);
  }
  if (found.empty()) return values;
  std::vector<std::string> there;
  there.reserve(found.size());
  for (size_t i : found) there.push_back(keys[i]);
  const auto bytes = store.multiGet(there);
  for (size_t i = 0; i < found.size(); ++i) values[found[i]].emplace(bytes[i].begin(), bytes[i].end());
  return values;
}

/// HashStore has a lock of its own.
class MemoryStore final : public RunStore {
 public:
  void set(const std::string& key, const std::string& value) override { store_->set(key, value); }
  std::optional<std::string> get(const std::string& key) override { return value_of(*store_, key); }
  std::vector<std::optional<std::string>> get_all(const std::vector<std::string>& keys) override {
    return values_of(*store_, keys);
  }
  int64_t add(const std::string& key, int64_t value) override { return store_->add(key, value); }
  c10d::Store& store() override { return *store_; }

 private:
  Store store_ = c10::make_intrusive<c10d::HashStore>();
};

/// Runs each call on a thread of its own and leaves it behind when it does not return in time: c10d's client
/// reads from its socket without a limit, and neither shows the socket nor lets go of it.
class BoundedCalls {
 public:
  BoundedCalls(std::string server, std::chrono::seconds timeout)
      : server_(std::move(server)), timeout_(timeout) {}

  /// What `function` returns. It must own all that it uses.
  template <typename Function>
  std::invoke_result_t<Function> operator()(Function function) {
    using Result = std::invoke_result_t<Function>;
    const std::lock_guard lock(mutex_);
    if (!lost_.empty()) throw EnvironmentError(lost_);
    std::packaged_task<Result()> task(std::move(function));
    std::future<Result> result = task.get_future();
    std::thread(std::move(task)).detach();
    if (result.wait_for(timeout_) != std::future_status::ready) {
      fail(fmt::format("no answer within {} s", timeout_.count()));
    }
    try {
      return result.get();
    } catch (const std::exception& error) {
      fail(one_line(error));
    }
  }

 private:
  [[noreturn]] void fail(const std::string& cause) {
    lost_ = fmt::format("the run's store at {}: {}", server_, cause);
    throw EnvironmentError(lost_);
  }

  std::string server_, lost_;
  std::chrono::seconds timeout_;
  std::mutex mutex_;
};

class TcpRunStore final : public RunStore {
 public:
  TcpRunStore(const RankEnvironment& environment, std::chrono::seconds timeout)
      : call_(fmt::format("{}:{}", environment.master_address, environment.master_port), timeout) {
    c10d::TCPStoreOptions options;
    options.port = environment.master_port;
    options.timeout = timeout;
    options.waitWorkers = false;
    // multiTenant: connections of one process that ask for the same port share the server.
    options.isServer = options.multiTenant = environment.world.rank == 0 && !environment.agent_store;
    const std::string prefix = fmt::format(
        "satune/{}/{}", environment.run_id,
        environment.attempt.empty() ? std::to_string(environment.restart_count) : environment.attempt);
    store_ = call_([host = environment.master_address, options, prefix]() -> Store {
      return c10::make_intrusive<c10d::PrefixStore>(prefix,
                                                    c10::make_intrusive<c10d::TCPStore>(host, options));
    });
  }

  void set(const std::string& key, const std::string& value) override {
    call_([store = store_, key, value] { store->set(key, value); });
  }
  std::optional<std::string> get(const std::string& key) override {
    return call_([store = store_, key] { return value_of(*store, key); });
  }
  std::vector<std::optional<std::string>> get_all(const std::vector<std::string>& keys) override {
    return call_([store = store_, keys] { return values_of(*store, keys); });
  }
  int64_t add(const std::string& key, int64_t value) override {
    return call_([store = store_, key, value] { return store->add(key, value); });
  }
  c10d::Store& store() override { return *store_; }

 private:
  BoundedCalls call_;
  Store store_;
};

class LoopbackServer final : public StoreServer {
 public:
  explicit LoopbackServer(uint16_t port) {
    c10d::TCPStoreOptions options;
    options.masterListenFd = listen_on_loopback(port, options.port);
    options.isServer = true;
    options.waitWorkers = false;
    try {
      store_ = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
    } catch (const c10::Error& error) {
      throw EnvironmentError(fmt::format("the run's store at 127.0.0.1:{}: {}", port, one_line(error)));
    }
  }

  uint16_t port() const override { return store_->getPort(); }

 private:
  /// A bound socket, which the server takes over; `bound` is its port.
  static int listen_on_loopback(uint16_t port, uint16_t& bound) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* any = reinterpret_cast<sockaddr*>(&address);
    if (fd < 0 || ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        ::bind(fd, any, size) != 0 || ::getsockname(fd, any, &size) != 0) {
      const int error = errno;
      if (fd >= 0) ::close(fd);
      throw EnvironmentError(
          fmt::format("port {} of this machine for the run's store: {}", port, std::strerror(error)));
    }
    bound = ntohs(address.sin_port);
    return fd;
  }

  c10::intrusive_ptr<c10d::TCPStore> store_;
};

}  // namespace

std::unique_ptr<StoreServer> open_store_server(uint16_t port) {
  quiet_c10d();
  return std::make_unique<LoopbackServer>(port);
}

std::shared_ptr<RunStore> connect_store(const RankEnvironment& environment, std::chrono::seconds timeout) {
  quiet_c10d();
  return std::make_shared<TcpRunStore>(environment, timeout);
}

std::shared_ptr<RunStore> make_memory_store() {
  return std::make_shared<MemoryStore>();
}

}  // namespace satune
