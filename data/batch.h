// One micro-batch as the model takes it: documents laid end to end on one token axis, without padding.
// N tokens in all. Attention stays inside a document, so that packing cannot contaminate.
#pragma once

#include <cstdint>
#include <vector>

namespace satune {

/// Target id of a token whose successor is not trained (prompt tokens, a document's last token).
inline constexpr int32_t kIgnoreTarget = -100;

struct Batch {
  std::vector<int32_t> tokens;           ///< [N] ids
  std::vector<int32_t> targets;          ///< [N] id of the next token of the document, or kIgnoreTarget
  std::vector<int32_t> positions;        ///< [N] RoPE position, 0 at each document's start
  std::vector<int32_t> document_starts;  ///< [documents + 1] offsets into N; last = N
  int64_t target_count = 0;              ///< number of targets != kIgnoreTarget
};

}  // namespace satune
