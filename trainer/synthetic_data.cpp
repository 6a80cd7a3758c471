#include "trainer/synthetic_data.h"

#include <utility>
#include <vector>

#include "data/files/hash.h"

namespace satune {

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t& counter) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(mix_bits(counter += kGoldenGamma) % static_cast<uint64_t>(vocab_size));
  return tokens;
}

BatchSource synthetic_rows(const SyntheticRows& shape) {
  std::vector<std::vector<int32_t>> documents(
      static_cast<size_t>(shape.rows * (shape.row_length / shape.document_length)));
  uint64_t counter = shape.seed;
  for (std::vector<int32_t>& document : documents)
    document = random_tokens(shape.document_length, shape.vocab_size, counter);
  DatasetPolicy policy;
  policy.max_length = shape.row_length;
  PlanOptions options;
  options.max_length = shape.row_length;
  options.shuffle = false;
  return {Dataset(TokenCache::of_tokens("synthetic tokens", std::move(documents)), policy), options};
}

}  // namespace satune
