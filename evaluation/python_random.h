// The draws of Python's random.Random, so that few-shot examples are those that lm-eval draws: MT19937 seeded
// by init_by_array (Matsumoto and Nishimura 2002), and the algorithm of random.sample() of Python 3.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace satune {

class PythonRandom {
 public:
  explicit PythonRandom(uint32_t seed);

  /// Indices that random.sample(range(population), k) draws. Precondition: 0 <= k <= population < 2^32.
  std::vector<int64_t> sample(int64_t population, int64_t k);

 private:
  static constexpr size_t kWords = 624;

  uint32_t next();
  /// Uniform in [0, bound).
  int64_t below(int64_t bound);

  std::array<uint32_t, kWords> state_{};
  size_t position_ = kWords;
};

}  // namespace satune
