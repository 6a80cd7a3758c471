#include "data/random.h"

namespace satune {
namespace {

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

constexpr uint64_t kGamma = 0x9e3779b97f4a7c15ULL;

}  // namespace

RandomStream::RandomStream(uint64_t seed, std::string_view purpose, uint64_t index) {
  uint64_t name = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : purpose) name = (name ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  state_ = mix(mix(mix(seed + kGamma) + name) + kGamma * (index + 1));
}

uint64_t RandomStream::next() {
  return mix(state_ += kGamma);
}

uint64_t RandomStream::below(uint64_t bound) {
  __extension__ using Wide = unsigned __int128;
  Wide product = static_cast<Wide>(next()) * bound;
  if (static_cast<uint64_t>(product) < bound) {
    const uint64_t threshold = -bound % bound;
    while (static_cast<uint64_t>(product) < threshold) product = static_cast<Wide>(next()) * bound;
  }
  return static_cast<uint64_t>(product >> 64);
}

}  // namespace satune
