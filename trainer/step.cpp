#include "trainer/step.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "trainer/gradient_norm.h"
#include "trainer/memory_plan.h"

namespace satune {
namespace {

at::Tensor ids_to_device(const std::vector<int32_t>& values, const at::Device& device) {
  at::Tensor ids = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), ids.mutable_data_ptr<int64_t>());
  return ids.to(device);
}

at::ScalarType gradient_type(const Settings& settings, at::ScalarType weights) {
  return gradient_element_bytes(settings) == 4 ? at::kFloat : weights;
}

}  // namespace

DeviceBatch to_device(const Batch& batch, const at::Device& device) {
  return {ids_to_device(batch.tokens, device),
          ids_to_device(batch.targets, device),
          ids_to_device(batch.positions, device),
          {batch.document_starts.begin(), batch.document_starts.end()},
          batch.target_count};
}

std::vector<StepPosition> micro_batches(const StepPosition& step, int64_t rows_per_micro_batch,
                                        const World& world) {
  std::vector<StepPosition> batches;
  const int64_t stride = rows_per_micro_batch * world.size;
  for (int64_t begin = 0; begin < step.rows; begin += stride) {
    const int64_t first = std::min(step.rows, begin + world.rank * rows_per_micro_batch);
    const int64_t last = std::min(step.rows, first + rows_per_micro_batch);
    batches.push_back({step.epoch, step.first_row + first, last - first});
  }
  return batches;
}

TrainingStep::TrainingStep(Llama& model, AdamW& optimizer, BatchSource& data, const Settings& settings,
                           std::vector<Recording> recording)
    : model_(model),
      optimizer_(optimizer),
      data_(data),
      rows_per_micro_batch_(settings.per_device_train_batch_size),
      max_grad_norm_(settings.max_grad_norm),
      recording_(std::move(recording)),
      gradients_(model.make_gradients(gradient_type(settings, model.weights().type()))) {}

TrainingStep::Sums TrainingStep::accumulate(const StepPosition& position, double loss_scale,
                                            SegmentHooks& hooks) {
  Sums sums;
  bool first = true;
  for (const StepPosition& rows : micro_batches(position, rows_per_micro_batch_, optimizer_.world())) {
    const Batch batch = data_.make_batch(rows.epoch, rows.first_row, rows.rows);
    if (batch.target_count == 0) continue;  // its gradients would be zeros
    const LossSums losses = model_.forward_backward(to_device(batch, model_.weights().device()), loss_scale,
                                                    gradients_, !first, recording_, hooks);
    sums.loss += losses.loss.item<double>();
    sums.correct += losses.correct.item<int64_t>();
    first = false;
  }
  if (first) gradients_.zero();
  return sums;
}

StepResult TrainingStep::run(const StepPosition& position, double learning_rate, int64_t update,
                             SegmentHooks& hooks, double loss_scale) {
  StepResult result;
  result.tokens = data_.token_count(position.epoch, position.first_row, position.rows);
  result.targets = data_.target_count(position.epoch, position.first_row, position.rows);
  result.samples =
      static_cast<int64_t>(data_.record_numbers(position.epoch, position.first_row, position.rows).size());
  if (result.targets == 0) {
    result.loss = result.accuracy = std::numeric_limits<double>::quiet_NaN();
    return result;
  }
  const auto targets = static_cast<double>(result.targets);
  const Sums sums = accumulate(position, loss_scale / targets, hooks);
  result.loss = sums.loss / targets;
  result.accuracy = static_cast<double>(sums.correct) / targets;
  result.grad_norm = std::sqrt(gradient_sum_of_squares(gradients_, optimizer_.world())) / loss_scale;
  result.finite = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  if (!result.finite) return result;
  const double gradient_scale = clip_factor(result.grad_norm, max_grad_norm_) / loss_scale;
  optimizer_.update(gradients_, gradient_scale, learning_rate, update);
  result.updated = true;
  return result;
}

bool TrainingStep::row_is_finite(const StepPosition& row, SegmentHooks& hooks) {
  const Batch batch = data_.make_batch(row.epoch, row.first_row, row.rows);
  if (batch.target_count == 0) return true;
  const LossSums losses = model_.forward_backward(to_device(batch, model_.weights().device()),
                                                  1.0 / static_cast<double>(batch.target_count), gradients_,
                                                  false, recording_, hooks);
  return std::isfinite(losses.loss.item<double>()) && std::isfinite(gradient_sum_of_squares(gradients_));
}

std::vector<int64_t> TrainingStep::find_nonfinite_records(const StepPosition& position, SegmentHooks& hooks) {
  std::vector<int64_t> found;
  for (int64_t i = 0; i < position.rows; ++i) {
    const StepPosition row{position.epoch, position.first_row + i, 1};
    if (row_is_finite(row, hooks)) continue;
    const size_t before = found.size();
    for (const int64_t index : data_.plan(row.epoch).row(row.first_row)) {
      const SampleView sample = data_.dataset().sample(index);
      const Batch batch = make_batch(std::span(&sample, 1));
      const LossSums losses = model_.evaluate(to_device(batch, model_.weights().device()), hooks);
      if (!std::isfinite(losses.loss.item<double>())) found.push_back(sample.record_number);
    }
    if (found.size() == before) {
      for (const int64_t record : data_.record_numbers(row.epoch, row.first_row, 1)) found.push_back(record);
    }
  }
  return found;
}

}  // namespace satune
