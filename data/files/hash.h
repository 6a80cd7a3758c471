// Hashes whose values must never change: names and counters become the seeds of random streams, and the same
// seed has to give the same weights and the same order of the data for ever.
#pragma once

#include <cstdint>
#include <string_view>

namespace satune {

/// 2^64 / golden ratio: SplitMix64's step between two states, and Fibonacci hashing's factor.
inline constexpr uint64_t kGoldenGamma = 0x9e3779b97f4a7c15ULL;

/// SplitMix64's output function of a state (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
/// Generators, OOPSLA 2014). The generator's n-th number is mix_bits(seed + n * kGoldenGamma).
constexpr uint64_t mix_bits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

/// FNV-1a, 64 bits.
constexpr uint64_t hash_name(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

}  // namespace satune
