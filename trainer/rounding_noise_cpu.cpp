#include "trainer/cpu_clones.h"
#include "trainer/rounding_noise.h"

namespace satune {
namespace {

constexpr int64_t kWords = 4;    // of one counter
constexpr int64_t kGroups = 64;  // counters at a time

/// The words of kGroups counters from `group` on. All rounds of a counter at once, so that it stays in
/// registers where the loop over counters is vectorised.
SATUNE_INLINE void words_of(const NoiseKey& key, uint32_t group, uint32_t* __restrict words) {
  const uint32_t array = key.array << 28, update = key.update, tensor = key.tensor;
  const auto low = static_cast<uint32_t>(key.seed), high = static_cast<uint32_t>(key.seed >> 32);
  for (uint32_t i = 0; i < kGroups; ++i) {
    uint32_t c0 = group + i, c1 = array, c2 = update, c3 = tensor;
#pragma GCC unroll 10
    for (uint32_t round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t{0xD2511F53U} * c0, b = uint64_t{0xCD9E8D57U} * c2;
      c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ (low + round * 0x9E3779B9U);
      c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ (high + round * 0xBB67AE85U);
      c1 = static_cast<uint32_t>(b);
      c3 = static_cast<uint32_t>(a);
    }
    words[kWords * i] = c0;
    words[kWords * i + 1] = c1;
    words[kWords * i + 2] = c2;
    words[kWords * i + 3] = c3;
  }
}

}  // namespace

SATUNE_CLONES
void rounding_noise(const NoiseKey& key, int64_t first, int64_t n, uint32_t* noise) {
  uint32_t words[kWords * kGroups];
  for (int64_t element = first; element < first + n;) {
    const int64_t group = element / kWords, skipped = element - group * kWords;
    words_of(key, static_cast<uint32_t>(group), words);
    int64_t count = kWords * kGroups - skipped;
    if (count > first + n - element) count = first + n - element;
    __builtin_memcpy(noise + (element - first), words + skipped,
                     static_cast<uint64_t>(count) * sizeof(uint32_t));
    element += count;
  }
}

}  // namespace satune
