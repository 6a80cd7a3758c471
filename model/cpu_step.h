// The step of a decoder on CPUs in fp32 and bf16: a few rows through all layers without a tensor made on the
// way. Each row's bits depend on its own sequence alone, not on the rows beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/kv_cache.h"
#include "model/layer.h"
#include "model/llama.h"
#include "model/ops/rope.h"

namespace satune {

/// One token a row. Rows of one sequence have ascending positions that follow what the cache holds.
struct StepRows {
  std::span<const int32_t> tokens;
  std::span<const int64_t> sequences, positions;
};

/// How often rows attended with weights computed for them, and how often with those of their anchor.
struct AttentionCounts {
  int64_t computed = 0, reused = 0;
};

class CpuStep {
 public:
  virtual ~CpuStep() = default;

  /// Puts the rows' keys and values into the cache and writes the logits of the rows from `first_logits` on,
  /// [rows - first_logits, V], rounded to the model's type. At most `most_rows` rows.
  virtual void run(const StepRows& rows, int64_t first_logits, float* logits, AttentionCounts& counts) = 0;

  /// Whether there is one for this model.
  static bool supports(const Llama& model);
  /// All of these must outlive it and keep their memory where it is.
  static std::unique_ptr<CpuStep> make(const Llama& model, const std::vector<LayerWeights>& layers,
                                       const RopeTable& rope, const KvCache& cache, int64_t most_rows);
};

}  // namespace satune
