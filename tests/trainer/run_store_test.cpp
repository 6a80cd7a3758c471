#include "trainer/run_store.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "data/files/error.h"

namespace satune::trainer_test {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

RankEnvironment environment_at(uint16_t port) {
  RankEnvironment environment;
  environment.world = {1, 4};
  environment.master_port = port;
  environment.agent_store = true;
  return environment;
}

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/// A listening socket on a port of its own.
class Listener {
 public:
  Listener() : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof(address);
    auto* any = reinterpret_cast<sockaddr*>(&address);
    if (::bind(fd_, any, size) != 0 || ::listen(fd_, 16) != 0 || ::getsockname(fd_, any, &size) != 0) {
      throw std::runtime_error("listen");
    }
    port_ = ntohs(address.sin_port);
  }
  ~Listener() { ::close(fd_); }
  int fd() const { return fd_; }
  uint16_t port() const { return port_; }

 private:
  int fd_;
  uint16_t port_ = 0;
};

/// Passes one connection on to a server until it is told to hold everything back, like a machine that hangs.
class Relay {
 public:
  explicit Relay(uint16_t server) : server_(server), thread_([this] { run(); }) {}
  ~Relay() {
    end_ = true;
    thread_.join();
  }
  uint16_t port() const { return listener_.port(); }
  void hold_back() { held_ = true; }

 private:
  void run() {
    const int client = ::accept(listener_.fd(), nullptr, nullptr);
    const int server = ::socket(AF_INET, SOCK_STREAM, 0);
    const sockaddr_in address = loopback(server_);
    if (::connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
      while (!end_) {
        pollfd ready[2] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
        if (::poll(ready, 2, 10) <= 0 || held_) {
          if (held_) std::this_thread::sleep_for(5ms);
          continue;
        }
        if (ready[0].revents != 0 && !pass(client, server)) break;
        if (ready[1].revents != 0 && !pass(server, client)) break;
      }
    }
    ::close(client);
    ::close(server);
  }
  static bool pass(int from, int to) {
    char bytes[4096];
    const ssize_t count = ::read(from, bytes, sizeof(bytes));
    return count > 0 && ::write(to, bytes, static_cast<size_t>(count)) == count;
  }

  uint16_t server_;
  Listener listener_;
  std::atomic<bool> held_ = false, end_ = false;
  std::thread thread_;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
    return "";
  } catch (const EnvironmentError& error) {
    return error.what();
  }
}

void expect_contract(RunStore& store) {
  const auto begin = Clock::now();
  EXPECT_EQ(store.get("a"), std::nullopt);
  EXPECT_TRUE(store.get_all({}).empty());
  EXPECT_EQ(store.get_all({"a", "b"}), (std::vector<std::optional<std::string>>{{}, {}}));
  const std::string binary("\0\xff\n\0", 4);
  store.set("a", binary);
  store.set("c", "");
  EXPECT_EQ(store.get("a"), binary);
  EXPECT_EQ(store.get("c"), "");
  EXPECT_EQ(store.get_all({"c", "missing", "a", "c"}),
            (std::vector<std::optional<std::string>>{"", std::nullopt, binary, ""}));
  EXPECT_EQ(store.get_all({"a", "c"}), (std::vector<std::optional<std::string>>{binary, ""}));
  store.set("a", "again");
  EXPECT_EQ(store.get("a"), "again");
  EXPECT_EQ(store.add("n", 5), 5);
  EXPECT_EQ(store.add("n", -7), -2);
  EXPECT_EQ(store.get("n"), "-2");
  EXPECT_EQ(store.add("n", 0), -2);
  const std::string large(5'000'000, 'x');
  store.set("large", large);
  EXPECT_EQ(store.get("large"), large);
  EXPECT_LT(Clock::now() - begin, 20s) << "a call waited for a key";
}

TEST(RunStore, InMemory) {
  const auto store = make_memory_store();
  expect_contract(*store);
  EXPECT_EQ(make_memory_store()->get("a"), std::nullopt);
}

TEST(RunStore, OverTcp) {
  const auto server = open_store_server(0);
  ASSERT_NE(server->port(), 0);
  const auto store = connect_store(environment_at(server->port()), 30s);
  expect_contract(*store);
  EXPECT_EQ(connect_store(environment_at(server->port()), 30s)->get("a"), "again");
}

TEST(RunStore, KeysBelongToTheRunAndTheAttempt) {
  const auto server = open_store_server(0);
  RankEnvironment environment = environment_at(server->port());
  connect_store(environment, 30s)->set("key", "first");
  environment.restart_count = 1;
  const auto second = connect_store(environment, 30s);
  EXPECT_EQ(second->get("key"), std::nullopt);
  second->set("key", "second");
  environment.run_id = "other";
  EXPECT_EQ(connect_store(environment, 30s)->get("key"), std::nullopt);
  environment.run_id = "";
  environment.restart_count = 0;
  EXPECT_EQ(connect_store(environment, 30s)->get("key"), "first");
}

TEST(RunStore, ThreadsShareAConnection) {
  const auto server = open_store_server(0);
  const auto store = connect_store(environment_at(server->port()), 30s);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 50; ++round) {
        store->add("sum", 1);
        store->set(std::to_string(i), std::to_string(round));
        EXPECT_EQ(store->get(std::to_string(i)), std::to_string(round));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(store->add("sum", 0), 200);
}

/// A port that was free a moment ago.
uint16_t free_port() {
  return Listener().port();
}

TEST(RunStore, RankZeroOpensTheServerItself) {
  RankEnvironment environment = environment_at(free_port());
  environment.agent_store = false;
  // The others may come first.
  std::thread other([&] { connect_store(environment, 60s)->set("from 1", "x"); });
  std::this_thread::sleep_for(200ms);
  RankEnvironment zero = environment;
  zero.world.rank = 0;
  auto first = connect_store(zero, 60s);
  const auto second = connect_store(zero, 60s);
  other.join();
  EXPECT_EQ(second->get("from 1"), "x");
  // It lives as long as any of rank 0's connections.
  first.reset();
  second->set("still", "here");
  EXPECT_EQ(connect_store(environment, 60s)->get("still"), "here");
}

TEST(RunStore, APortThatIsTakenIsNamed) {
  const Listener taken;
  RankEnvironment zero = environment_at(taken.port());
  zero.agent_store = false;
  zero.world.rank = 0;
  const std::string error = error_of([&] { connect_store(zero, 10s); });
  EXPECT_TRUE(error.starts_with(fmt::format("the run's store at 127.0.0.1:{}: ", taken.port()))) << error;
  EXPECT_NE(error.find("address already in use"), std::string::npos) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos);
  const std::string launcher = error_of([&] { open_store_server(taken.port()); });
  EXPECT_EQ(launcher,
            fmt::format("port {} of this machine for the run's store: Address already in use", taken.port()));
}

TEST(RunStore, TheLaunchersServerIsNotOnTheNetwork) {
  const auto server = open_store_server(0);
  // Another address of this machine.
  sockaddr_in address = loopback(server->port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_NE(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ::close(fd);
}

TEST(RunStore, AnUnreachableServerIsAnErrorInTime) {
  const uint16_t port = free_port();
  const auto begin = Clock::now();
  const std::string error = error_of([&] { connect_store(environment_at(port), 2s); });
  EXPECT_LT(Clock::now() - begin, 6s);
  EXPECT_TRUE(error.starts_with(fmt::format("the run's store at 127.0.0.1:{}: ", port))) << error;
}

TEST(RunStore, AServerThatNeverAnswersIsAnErrorInTime) {
  const Listener silent;
  const auto begin = Clock::now();
  const std::string error = error_of([&] { connect_store(environment_at(silent.port()), 2s); });
  EXPECT_LT(Clock::now() - begin, 6s);
  EXPECT_EQ(error, fmt::format("the run's store at 127.0.0.1:{}: no answer within 2 s", silent.port()));
}

TEST(RunStore, AServerThatHangsLaterIsAnErrorInTime) {
  const auto server = open_store_server(0);
  Relay relay(server->port());
  const auto store = connect_store(environment_at(relay.port()), 3s);
  store->set("key", "value");
  EXPECT_EQ(store->get("key"), "value");
  relay.hold_back();
  const auto begin = Clock::now();
  const std::string expected =
      fmt::format("the run's store at 127.0.0.1:{}: no answer within 3 s", relay.port());
  EXPECT_EQ(error_of([&] { store->get("key"); }), expected);
  EXPECT_GE(Clock::now() - begin, 2900ms);
  // From then on at once.
  const auto again = Clock::now();
  EXPECT_EQ(error_of([&] { store->get_all({"key"}); }), expected);
  EXPECT_EQ(error_of([&] { store->set("key", "x"); }), expected);
  EXPECT_EQ(error_of([&] { store->add("n", 1); }), expected);
  EXPECT_LT(Clock::now() - again, 1s);
}

TEST(RunStore, AServerThatEndsIsAnError) {
  auto server = open_store_server(0);
  const uint16_t port = server->port();
  const auto store = connect_store(environment_at(port), 30s);
  store->set("key", "value");
  EXPECT_EQ(store->get("key"), "value");
  server.reset();
  const std::string error = error_of([&] {
    store->get("key");
    store->get("key");
  });
  EXPECT_TRUE(error.starts_with(fmt::format("the run's store at 127.0.0.1:{}: ", port))) << error;
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

}  // namespace
}  // namespace satune::trainer_test
