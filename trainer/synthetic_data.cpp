#include "trainer/synthetic_data.h"

#include <utility>
#include <vector>

#include "data/files/hash.h"

namespace satune {

BatchSource synthetic_rows(const SyntheticRows& shape) {
  std::vector<std::vector<int32_t>> documents(
      static_cast<size_t>(shape.rows * (shape.row_length / shape.document_length)));
  uint64_t counter = shape.seed;
  for (std::vector<int32_t>& document : documents) {
    document.resize(static_cast<size_t>(shape.document_length));
    for (int32_t& token : document)
      token =
          static_cast<int32_t>(mix_bits(counter += kGoldenGamma) % static_cast<uint64_t>(shape.vocab_size));
  }
  DatasetPolicy policy;
  policy.max_length = shape.row_length;
  PlanOptions options;
  options.max_length = shape.row_length;
  options.shuffle = false;
  return {Dataset(TokenCache::of_tokens("synthetic tokens", std::move(documents)), policy), options};
}

}  // namespace satune
