// Under which address the other ranks reach this machine.
#pragma once

#include <string>

#include "trainer/rank_environment.h"

namespace satune {

/// The address, as digits, of the interface from which this machine reaches MASTER_ADDR. On rank 0's machine
/// that may be the loopback (Debian's /etc/hosts gives a machine's own name 127.0.1.1): when there are ranks
/// elsewhere, the first other address of an interface that is up. Throws EnvironmentError when MASTER_ADDR
/// cannot be resolved or is out of reach, or when there is no such interface.
std::string network_address(const RankEnvironment& environment);

}  // namespace satune
