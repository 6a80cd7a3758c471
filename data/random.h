// Our own random numbers, because the standard library's shuffles and distributions differ between
// implementations: the same seed gives the same order everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

namespace satune {

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014). A stream is
/// named: (seed, purpose, index) with another purpose or index is unrelated to it.
class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view purpose, uint64_t index = 0);

  uint64_t next();
  /// Uniform in [0, bound), without bias (Lemire's multiplication with rejection); bound > 0.
  uint64_t below(uint64_t bound);

 private:
  uint64_t state_;
};

/// Fisher-Yates from the last element down.
template <typename T>
void shuffle(std::span<T> values, RandomStream& random) {
  for (size_t i = values.size(); i > 1; --i) {
    std::swap(values[i - 1], values[static_cast<size_t>(random.below(i))]);
  }
}

}  // namespace satune
