#include "data/random.h"

#include "data/files/hash.h"

namespace satune {

RandomStream::RandomStream(uint64_t seed, std::string_view purpose, uint64_t index) {
  const uint64_t stream = mix_bits(mix_bits(seed + kGoldenGamma) + hash_name(purpose));
  state_ = mix_bits(stream + kGoldenGamma * (index + 1));
}

uint64_t RandomStream::next() {
  return mix_bits(state_ += kGoldenGamma);
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
