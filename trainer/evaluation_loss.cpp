#include "trainer/evaluation_loss.h"

#include <ATen/ATen.h>

#include "evaluation/device_batch.h"
#include "trainer/collective.h"
#include "trainer/shown_number.h"

namespace satune {

double evaluation_loss(Llama& model, BatchSource& data, int64_t rows_per_batch, ProcessGroup& group,
                       Coordinator& coordinator, SegmentHooks& hooks) {
  const World& world = group.world();
  std::vector<double> mine;
  // As many passes on every rank: the last ones may be over nothing.
  for (int64_t row = 0; row < data.rows(0); row += rows_per_batch * world.size) {
    const Batch batch = data.make_batch(0, row + world.rank * rows_per_batch, rows_per_batch);
    const DeviceBatch there = in_collective(coordinator, "upload of a batch",
                                            [&] { return to_device(batch, model.weights().device()); });
    const at::Tensor loss = model.evaluate(there, hooks).loss;
    mine.push_back(in_collective(coordinator, "loss of a batch", [&] { return loss.item<double>(); }));
  }
  const std::vector<double> all =
      in_collective(coordinator, "exchange of evaluation losses", [&] { return group.exchange(mine); });
  double loss = 0;
  for (size_t i = 0; i < mine.size(); ++i) {
    for (int64_t rank = 0; rank < world.size; ++rank)
      loss += all[static_cast<size_t>(rank) * mine.size() + i];
  }
  return shown_number(loss) / static_cast<double>(data.target_count(0, 0, data.rows(0)));
}

}  // namespace satune
