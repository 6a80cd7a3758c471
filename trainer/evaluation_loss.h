// The loss over held-out data while a run trains.
#pragma once

#include "data/batches.h"
#include "model/llama.h"
#include "trainer/coordinator.h"
#include "trainer/process_group.h"

namespace satune {

/// Mean loss per target token over all rows of `data` in file order, `rows_per_batch` at a time, the batches
/// dealt out to the ranks in turn; NaN where there is no target. The same number, bit for bit, for any number
/// of ranks. What `hooks` throws passes through.
double evaluation_loss(Llama& model, BatchSource& data, int64_t rows_per_batch, ProcessGroup& group,
                       Coordinator& coordinator, SegmentHooks& hooks);

}  // namespace satune
