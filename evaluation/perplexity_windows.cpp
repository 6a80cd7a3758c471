#include "evaluation/perplexity_windows.h"

#include <algorithm>

namespace satune {

std::vector<PerplexityWindow> perplexity_windows(int64_t tokens, int64_t max_length, int64_t stride) {
  std::vector<PerplexityWindow> windows;
  const int64_t predictions = tokens - 1;
  for (int64_t counted = 0; counted < predictions;) {
    const int64_t step = counted == 0 ? max_length : stride;
    const int64_t end = std::min(counted + step, predictions);
    windows.push_back({std::max<int64_t>(0, end - max_length), end, counted});
    counted = end;
  }
  return windows;
}

}  // namespace satune
