// Under which address the other ranks reach this machine.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "trainer/rank_environment.h"

namespace satune {

/// The address, as digits, of the interface from which this machine reaches MASTER_ADDR. On rank 0's machine
/// that may be the loopback (Debian's /etc/hosts gives a machine's own name 127.0.1.1): when there are ranks
/// elsewhere, choose_interface()'s. Throws EnvironmentError when MASTER_ADDR
/// cannot be resolved or is out of reach, or when there is no such interface.
std::string network_address(const RankEnvironment& environment);

/// One address of an interface of this machine.
struct InterfaceAddress {
  std::string interface;   ///< "eth0"
  unsigned int flags = 0;  ///< IFF_UP, IFF_RUNNING ... of netdevice(7)
  int family = 0;          ///< AF_INET, AF_INET6
  bool link_local = false;
  std::string address;  ///< digits
};

/// The one under which other machines most likely reach this one: of an interface that is up and running (a
/// bridge without containers is not) and no loopback, no link-local IPv6; that of the default route before
/// others, IPv4 before IPv6, then in their order. nullptr without one.
const InterfaceAddress* choose_interface(std::span<const InterfaceAddress> addresses,
                                         const std::optional<std::string>& default_route);

/// The interface of the default route of lowest metric, out of the text of /proc/net/route; nullopt without.
std::optional<std::string> default_route_interface(std::string_view routes);

}  // namespace satune
