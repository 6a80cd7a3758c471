#include "trainer/network_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "data/files/error.h"

namespace satune {
namespace {

std::string digits(const sockaddr* address, socklen_t size) {
  char text[NI_MAXHOST];
  const int error = ::getnameinfo(address, size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST);
  if (error != 0) throw EnvironmentError(fmt::format("network address: {}", ::gai_strerror(error)));
  return text;
}

bool is_loopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
  return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) ||
         (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) && v6->sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
}

/// Where packets to `to` start; nullopt and errno when there is no way. Sends none.
std::optional<std::pair<sockaddr_storage, socklen_t>> source_towards(const addrinfo& to) {
  const int fd = ::socket(to.ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return std::nullopt;
  sockaddr_storage source{};
  socklen_t size = sizeof(source);
  const bool found = ::connect(fd, to.ai_addr, to.ai_addrlen) == 0 &&
                     ::getsockname(fd, reinterpret_cast<sockaddr*>(&source), &size) == 0;
  const int error = errno;
  ::close(fd);
  errno = error;
  if (!found) return std::nullopt;
  return std::pair(source, size);
}

std::vector<InterfaceAddress> interface_addresses() {
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) {
    throw EnvironmentError(fmt::format("network interfaces: {}", std::strerror(errno)));
  }
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> list(first, ::freeifaddrs);
  std::vector<InterfaceAddress> addresses;
  for (const ifaddrs* one = first; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr) continue;
    const int family = one->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(one->ifa_addr);
    const bool link_local = family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr);
    const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    addresses.push_back({one->ifa_name, one->ifa_flags, family, link_local, digits(one->ifa_addr, size)});
  }
  return addresses;
}

std::string address_of_an_interface() {
  std::ifstream file("/proc/net/route");
  const std::string routes{std::istreambuf_iterator<char>(file), {}};
  const std::vector<InterfaceAddress> addresses = interface_addresses();
  if (const auto* chosen = choose_interface(addresses, default_route_interface(routes)))
    return chosen->address;
  throw EnvironmentError(
      "network interfaces: found none that is up and running beside the loopback, expected one that reaches "
      "the other ranks' machines");
}

}  // namespace

const InterfaceAddress* choose_interface(std::span<const InterfaceAddress> addresses,
                                         const std::optional<std::string>& default_route) {
  constexpr unsigned int kNeeded = IFF_UP | IFF_RUNNING;
  const InterfaceAddress* best = nullptr;
  const auto rank = [&](const InterfaceAddress& one) {
    return std::pair(one.interface != default_route, one.family != AF_INET);
  };
  for (const InterfaceAddress& one : addresses) {
    if ((one.flags & kNeeded) != kNeeded || (one.flags & IFF_LOOPBACK) != 0 || one.link_local) continue;
    if (best == nullptr || rank(one) < rank(*best)) best = &one;
  }
  return best;
}

// Lines of: interface, destination, gateway, flags, references, use, metric, mask ...; addresses in hex.
std::optional<std::string> default_route_interface(std::string_view routes) {
  std::istringstream lines{std::string(routes)};
  std::optional<std::string> best;
  int64_t lowest = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string interface, destination, gateway, flags, references, use, mask;
    int64_t metric = 0;
    if (!(fields >> interface >> destination >> gateway >> flags >> references >> use >> metric >> mask))
      continue;
    if (destination != "00000000" || mask != "00000000") continue;
    if (best && metric >= lowest) continue;
    best = interface;
    lowest = metric;
  }
  return best;
}

std::string network_address(const RankEnvironment& environment) {
  const std::string& host = environment.master_address;
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int error =
      ::getaddrinfo(host.c_str(), std::to_string(environment.master_port).c_str(), &hints, &found);
  if (error != 0) throw EnvironmentError(fmt::format("MASTER_ADDR {}: {}", host, ::gai_strerror(error)));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, ::freeaddrinfo);
  for (const addrinfo* to = found; to != nullptr; to = to->ai_next) {
    const auto source = source_towards(*to);
    if (!source) continue;
    const auto* address = reinterpret_cast<const sockaddr*>(&source->first);
    const bool elsewhere = environment.world.size > environment.local_world_size;
    if (elsewhere && is_loopback(address)) return address_of_an_interface();
    return digits(address, source->second);
  }
  throw EnvironmentError(fmt::format("MASTER_ADDR {}: {}", host, std::strerror(errno)));
}

}  // namespace satune
