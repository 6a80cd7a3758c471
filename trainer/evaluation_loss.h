// The loss over held-out data while a run trains.
#pragma once

#include "data/batches.h"
#include "model/llama.h"

namespace satune {

/// Mean loss per target token over all rows of `data` in file order, `rows_per_batch` at a time; NaN where
/// there is no target. What `hooks` throws passes through.
double evaluation_loss(Llama& model, BatchSource& data, int64_t rows_per_batch, SegmentHooks& hooks);

}  // namespace satune
