#include "trainer/evaluation_loss.h"

#include <ATen/ATen.h>

#include "trainer/step.h"

namespace satune {

double evaluation_loss(Llama& model, BatchSource& data, int64_t rows_per_batch, SegmentHooks& hooks) {
  double loss = 0;
  int64_t targets = 0;
  for (int64_t row = 0; row < data.rows(0); row += rows_per_batch) {
    const Batch batch = data.make_batch(0, row, rows_per_batch);
    if (batch.target_count == 0) continue;
    loss += model.evaluate(to_device(batch, model.weights().device()), hooks).loss.item<double>();
    targets += batch.target_count;
  }
  return loss / static_cast<double>(targets);
}

}  // namespace satune
