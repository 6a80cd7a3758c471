// Rows of random tokens behind the interface that training reads its data through.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batches.h"

namespace satune {

/// Ids below `vocab_size`, a function of `counter`, which it moves on.
std::vector<int32_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t& counter);

struct SyntheticRows {
  int64_t rows = 1;
  int64_t row_length = 0;       ///< tokens
  int64_t document_length = 0;  ///< tokens; divides row_length, at least 2
  int64_t vocab_size = 0;
  uint64_t seed = 42;
};

/// Every row is full, and every token but a document's last has a target.
BatchSource synthetic_rows(const SyntheticRows& shape);

}  // namespace satune
