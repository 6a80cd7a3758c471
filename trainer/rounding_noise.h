// The noise of stochastic rounding: random bits that are a function of what is rounded and nothing else, so
// that neither threads nor shards change them, and no two roundings of a run share any.
//
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011): a
// bijection of 128-bit counters under a 64-bit key. The key is the run's seed; the counter holds update,
// tensor, array and element / 4, and each of the four words that come out serves one element.
#pragma once

#include <cstdint>

namespace satune {

/// What a word of noise belongs to, but for the element.
struct NoiseKey {
  uint64_t seed = 0;
  uint32_t update = 0;  ///< number of the optimizer's update
  uint32_t tensor = 0;  ///< index in the model's table
  uint32_t array = 0;   ///< below 16: which of the numbers of an element
};

/// noise[i] = 32 random bits of element first + i, 0 <= i < n. Elements below 2^34.
void rounding_noise(const NoiseKey& key, int64_t first, int64_t n, uint32_t* noise);

}  // namespace satune
