// The moment before a process group is made: all ranks have come, or it is known which have not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/shard.h"

namespace c10d {
class Store;
}

namespace satune {

/// "rank 2", "ranks 2, 5", "ranks 2, 3, 4, 5, 6, 7, 8, 9 and 4 more"; not empty.
std::string name_ranks(const std::vector<int64_t>& ranks);

/// Returns when all ranks of `world` have called it on stores with the same keys, once a store. Throws
/// EnvironmentError that names the missing ranks after `timeout_seconds`.
void meet(c10d::Store& store, const World& world, int64_t timeout_seconds);

}  // namespace satune
