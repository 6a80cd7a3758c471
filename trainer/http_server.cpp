#include "trainer/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <list>
#include <vector>

#include "data/files/error.h"

namespace satune {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostConnections = 64, kLongestRequest = 8192;
constexpr std::chrono::seconds kPatience{10};
/// After a connection could not be taken for want of something, such as descriptors: poll() would come back
/// for it at once.
constexpr std::chrono::seconds kAcceptPause{1};

/// From the first byte of a request to the last of its answer. Afterwards what the browser still sends is
/// read away until it closes: closing before would cut its answer short.
struct Connection {
  Descriptor socket;
  std::string request, reply;
  size_t sent = 0;
  enum { kReads, kWrites, kDrains, kEnds } state = kReads;
  Clock::time_point deadline = Clock::now() + kPatience;

  short events() const { return state == kWrites ? POLLOUT : POLLIN; }
  /// For the client to send a request, or to close.
  bool waits() const { return state == kReads || state == kDrains; }

  void advance(const HttpServer::Pages& pages) {
    if (state == kWrites) {
      write();
    } else {
      read(pages);
    }
  }

  void read(const HttpServer::Pages& pages) {
    char bytes[4096];
    const ssize_t count = ::recv(socket.get(), bytes, sizeof(bytes), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) {
      state = kEnds;
      return;
    }
    if (state == kDrains) return;
    request.append(bytes, static_cast<size_t>(count));
    const bool whole = request.find("\r\n\r\n") != std::string::npos;
    if (!whole && request.size() <= kLongestRequest) return;
    // What is too long has no end: it is answered as no request.
    reply = http_answer(whole && request.size() <= kLongestRequest ? request : "", pages);
    deadline = Clock::now() + kPatience;
    state = kWrites;
    write();
  }

  void write() {
    const ssize_t count = ::send(socket.get(), reply.data() + sent, reply.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count < 0) {
      state = kEnds;
      return;
    }
    sent += static_cast<size_t>(count);
    deadline = Clock::now() + kPatience;
    if (sent < reply.size()) return;
    ::shutdown(socket.get(), SHUT_WR);
    state = kDrains;
  }
};

using Connections = std::list<Connection>;

/// The one that has waited longest for its client; end() where all are being answered.
Connections::iterator most_idle(Connections& connections) {
  auto most = connections.end();
  for (auto each = connections.begin(); each != connections.end(); ++each)
    if (each->waits() && (most == connections.end() || each->deadline < most->deadline)) most = each;
  return most;
}

/// Whether accept() failed because of the one connection, or there was none after all.
bool only_this_one_failed(int error) {
  return error == EAGAIN || error == EINTR || error == ECONNABORTED || error == EPROTO || error == EPERM;
}

int milliseconds_to(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::max<int64_t>(0, left + 1));
}

}  // namespace

HttpServer::HttpServer(uint16_t port)
    : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
  const int yes = 1;
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  // Connections of a server that has just ended do not keep its port.
  if (!listener_.is_open() ||
      ::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      ::bind(listener_.get(), generic, size) != 0 || ::listen(listener_.get(), SOMAXCONN) != 0 ||
      ::getsockname(listener_.get(), generic, &size) != 0) {
    throw EnvironmentError(
        fmt::format("--port {}: found it unusable on 127.0.0.1 ({}), expected a free one; 0 takes any", port,
                    std::strerror(errno)));
  }
  port_ = ntohs(address.sin_port);
}

void HttpServer::serve(const Pages& pages, SignalEvents& signals) {
  Connections connections;
  Clock::time_point accept_after = Clock::now();
  bool warned = false;
  while (true) {
    const bool paused = Clock::now() < accept_after;
    // Where all are being answered, others wait in the kernel's queue.
    const bool room = connections.size() < kMostConnections || most_idle(connections) != connections.end();
    std::vector<pollfd> waits = {{signals.descriptor(), POLLIN, 0},
                                 {room && !paused ? listener_.get() : -1, POLLIN, 0}};
    Clock::time_point next = paused ? accept_after : Clock::now() + std::chrono::hours(1);
    for (const Connection& each : connections) {
      waits.push_back({each.socket.get(), each.events(), 0});
      next = std::min(next, each.deadline);
    }
    if (::poll(waits.data(), waits.size(), milliseconds_to(next)) < 0 && errno != EINTR)
      throw EnvironmentError(fmt::format("poll: {}", std::strerror(errno)));
    if (waits[0].revents != 0) {
      signals.take();  // one left waiting would end the process when it is no longer blocked
      return;
    }
    size_t at = 2;
    for (Connection& each : connections)
      if (waits[at++].revents != 0) each.advance(pages);
    connections.remove_if([now = Clock::now()](const Connection& each) {
      return each.state == Connection::kEnds || each.deadline <= now;
    });
    if (waits[1].revents == 0) continue;
    const bool full = connections.size() >= kMostConnections;
    if (full && most_idle(connections) == connections.end()) continue;  // all have a request since
    Descriptor socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket.is_open()) {
      const int error = errno;
      if (only_this_one_failed(error)) continue;
      accept_after = Clock::now() + kAcceptPause;
      if (!warned) {
        spdlog::warn("port {}: no connection can be taken: {}; the next try is in {} s, and so on", port_,
                     std::strerror(error), kAcceptPause.count());
      }
      warned = true;
      continue;
    }
    // Clients that say nothing keep nobody out.
    if (full) connections.erase(most_idle(connections));
    connections.emplace_back();
    connections.back().socket = std::move(socket);
  }
}

}  // namespace satune
