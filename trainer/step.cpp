#include "trainer/step.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "data/files/error.h"
#include "evaluation/device_batch.h"
#include "model/ops/cuda_stream.h"
#include "trainer/collective.h"
#include "trainer/cuda_kernels.h"
#include "trainer/failure_report.h"
#include "trainer/gradient_norm.h"
#include "trainer/shown_number.h"

namespace satune {
namespace {

// Where the host waits for the card, and so for every collective that the card's streams wait for: once a
// step (in votes after it, with several ranks; and for each piece of the gradients in an update on the host).
// While pinned memory for uploads and numbers is first made it may wait as well.
constexpr const char* kUpload = "upload of a micro-batch";
constexpr const char* kNorm = "norm of the gradients";
constexpr const char* kRead = "loss and norm of a card";

/// Sum of squares of the share, then loss and right answers of each micro-batch: a rank's StepNumbers.
at::Tensor numbers_of(std::span<const at::Tensor> gradients, const std::vector<LossSums>& sums) {
  std::vector<at::Tensor> numbers;
  for (const LossSums& sum : sums) numbers.insert(numbers.end(), {sum.loss, sum.correct.to(at::kDouble)});
  const at::Tensor of_micro_batches = at::stack(numbers);
  return at::cat({sum_of_squares(gradients).to(of_micro_batches.device()).reshape({1}), of_micro_batches});
}

at::Tensor decide_on_card(const at::Tensor& all, const StepNumbers& step) {
  at::Tensor scale = at::empty({}, all.options().dtype(at::kFloat));
  cuda::decide_update(step, scale.mutable_data_ptr<float>(), cuda::current_stream(all));
  return scale;
}

/// Numbers on their way to the host, behind what was queued on their card before and beside what comes after.
class ReadBack {
 public:
  explicit ReadBack(const at::Tensor& numbers)
      : host_(at::empty(numbers.sizes(), at::dtype(at::kDouble).pinned_memory(true))),
        arrived_(numbers.device().type()) {
    host_.copy_(numbers, /*non_blocking=*/true);
    arrived_.record(c10::impl::VirtualGuardImpl(numbers.device().type()).getStream(numbers.device()));
  }

  const double* wait() {
    arrived_.synchronize();
    return host_.const_data_ptr<double>();
  }

 private:
  at::Tensor host_;
  c10::Event arrived_;
};

}  // namespace

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

std::vector<SampleView> longest_rows(BatchSource& data, int64_t epoch, int64_t count) {
  std::vector<std::pair<int64_t, int64_t>> rows;  // (-tokens, row): of equal ones the first
  for (int64_t row = 0; row < data.rows(epoch); ++row)
    rows.emplace_back(-data.token_count(epoch, row, 1), row);
  const auto end = rows.begin() + std::min(count, static_cast<int64_t>(rows.size()));
  std::partial_sort(rows.begin(), end, rows.end());
  std::vector<SampleView> documents;
  for (auto row = rows.begin(); row != end; ++row) {
    for (const int64_t index : data.plan(epoch).row(row->second)) {
      documents.push_back(data.dataset().sample(index));
    }
  }
  return documents;
}

TrainingStep::TrainingStep(Llama& model, Sharding& sharding, AdamW& optimizer, const ProcessGroups& groups,
                           Coordinator& coordinator, BatchSource& data, const Settings& settings,
                           std::vector<Recording> recording)
    : model_(model),
      sharding_(sharding),
      optimizer_(optimizer),
      groups_(groups),
      coordinator_(coordinator),
      data_(data),
      rows_per_micro_batch_(settings.per_device_train_batch_size),
      max_grad_norm_(settings.max_grad_norm),
      recording_(std::move(recording)) {}

DeviceBatch TrainingStep::upload(const Batch& batch) {
  return in_collective(coordinator_, kUpload, [&] { return to_device(batch, model_.weights().device()); });
}

at::Tensor TrainingStep::accumulate(const StepPosition& position, double loss_scale) {
  std::vector<LossSums> micro_batch_sums;
  sharding_.begin_step();
  for (const StepPosition& rows : micro_batches(position, rows_per_micro_batch_, groups_.all.world())) {
    const Batch batch = traced(coordinator_.trace(), "data",
                               [&] { return data_.make_batch(rows.epoch, rows.first_row, rows.rows); });
    micro_batch_sums.push_back(model_.forward_backward(upload(batch), loss_scale, sharding_.gradients(),
                                                       sharding_.accumulate(), recording_, sharding_));
    sharding_.end_micro_batch();
  }
  sharding_.finish_gradients();
  const at::Tensor mine = in_collective(
      coordinator_, kNorm, [&] { return numbers_of(sharding_.gradient_shares(), micro_batch_sums); });
  return in_collective(coordinator_, "exchange of loss and norm", [&] { return groups_.all.gather(mine); });
}

void TrainingStep::apply_update(const at::Tensor& gradient_scale, double learning_rate, int64_t number) {
  // A stop waits: the update reaches all ranks or none.
  const Held held(coordinator_);
  coordinator_.at_phase("update");
  const std::vector<at::Tensor> gradients = sharding_.optimizer_gradients();
  {
    const QueuedBehind queued(coordinator_, model_.weights().device());
    const TracedPart part(coordinator_.trace(), "optimizer");
    optimizer_.update(gradients, gradient_scale, learning_rate, number);
  }
  sharding_.publish_weights();
}

StepSums TrainingStep::update_on_host(const StepNumbers& step, double learning_rate, int64_t number) {
  const StepSums sums = sum_up(step);
  if (is_finite(sums, step))
    apply_update(at::scalar_tensor(gradient_scale(sums, step), at::kFloat), learning_rate, number);
  return sums;
}

StepSums TrainingStep::update_on_card(const at::Tensor& all, StepNumbers step, double learning_rate,
                                      int64_t number) {
  at::Tensor scale;
  std::optional<ReadBack> numbers;
  in_collective(coordinator_, kRead, [&] {
    scale = decide_on_card(all, step);
    numbers.emplace(all);
  });
  apply_update(scale, learning_rate, number);
  coordinator_.at_phase("step");  // what is waited for may be stuck in any part of it
  step.all = in_collective(coordinator_, kRead, [&] { return numbers->wait(); });
  return sum_up(step);
}

StepResult TrainingStep::run(const StepPosition& position, double learning_rate, int64_t update,
                             double loss_scale) {
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
  const at::Tensor all = accumulate(position, loss_scale / targets);
  const int64_t ranks = groups_.all.world().size;
  const StepNumbers step{all.const_data_ptr<double>(),
                         ranks,
                         all.numel() / ranks,
                         sharding_.world().size,
                         targets,
                         loss_scale,
                         max_grad_norm_};
  const StepSums sums = all.is_cpu() ? update_on_host(step, learning_rate, update)
                                     : update_on_card(all, step, learning_rate, update);
  result.loss = shown_number(sums.loss / targets);
  result.accuracy = sums.correct / targets;
  result.grad_norm = shown_number(gradient_norm(sums, step));
  result.finite = result.updated = is_finite(sums, step);
  return result;
}

void TrainingStep::rehearse(int64_t epoch) {
  const std::vector<SampleView> documents = longest_rows(data_, epoch, rows_per_micro_batch_);
  const Batch batch = make_batch(documents);
  const auto targets = static_cast<double>(std::max<int64_t>(1, batch.target_count));
  try {
    sharding_.begin_step();
    model_.forward_backward(upload(batch), 1.0 / targets, sharding_.gradients(), false, recording_,
                            sharding_);
    sharding_.end_micro_batch();
    sharding_.finish_gradients();
    sharding_.forget_gathered();
  } catch (...) {
    if (!out_of_memory()) throw;
    const auto longest = std::max_element(
        documents.begin(), documents.end(),
        [](const SampleView& a, const SampleView& b) { return a.tokens.size() < b.tokens.size(); });
    throw EnvironmentError(
        fmt::format("out of memory: found no room for the largest micro-batch ({} rows, {} tokens, record {} "
                    "of {}), expected "
                    "it to fit before training starts (smaller: per_device_train_batch_size, max_length, "
                    "gradient_checkpointing)",
                    rows_per_micro_batch_, batch.tokens.size(), longest->record_number,
                    data_.dataset().cache().data_file().string()));
  }
}

bool TrainingStep::row_is_finite(const StepPosition& row, int64_t rank) {
  const int64_t targets = data_.target_count(row.epoch, row.first_row, row.rows);
  if (targets == 0) return true;
  Batch batch;
  if (groups_.all.world().rank == rank) batch = data_.make_batch(row.epoch, row.first_row, row.rows);
  sharding_.begin_step();
  const LossSums sums = model_.forward_backward(upload(batch), 1.0 / static_cast<double>(targets),
                                                sharding_.gradients(), false, recording_, sharding_);
  sharding_.end_micro_batch();
  sharding_.finish_gradients();
  const std::vector<double> all = in_collective(coordinator_, "exchange about a row", [&] {
    const double mine[] = {sums.loss.item<double>(), gradient_sum_of_squares(sharding_.gradient_shares())};
    return groups_.all.exchange(mine);
  });
  return std::all_of(all.begin(), all.end(), [](double value) { return std::isfinite(value); });
}

bool TrainingStep::record_is_finite(const SampleView& sample, int64_t rank) {
  Batch batch;
  if (groups_.all.world().rank == rank) batch = make_batch(std::span(&sample, 1));
  const at::Tensor loss = model_.evaluate(upload(batch), sharding_).loss;
  const std::vector<double> all = in_collective(coordinator_, "exchange about a record", [&] {
    const double mine[] = {loss.item<double>()};
    return groups_.all.exchange(mine);
  });
  return std::isfinite(sum_over_ranks(all, groups_.all.world().size)[0]);
}

std::vector<NonFiniteRecord> TrainingStep::find_nonfinite_records(const StepPosition& position) {
  std::vector<NonFiniteRecord> found;
  for (int64_t i = 0; i < position.rows; ++i) {
    const StepPosition row{position.epoch, position.first_row + i, 1};
    const int64_t rank = i / rows_per_micro_batch_ % groups_.all.world().size;
    if (row_is_finite(row, rank)) continue;
    const size_t before = found.size();
    for (const int64_t index : data_.plan(row.epoch).row(row.first_row)) {
      const SampleView sample = data_.dataset().sample(index);
      if (!record_is_finite(sample, rank)) found.push_back({sample.record_number, rank});
    }
    if (found.size() > before) continue;
    for (const int64_t record : data_.record_numbers(row.epoch, row.first_row, 1)) {
      found.push_back({record, rank});
    }
  }
  return found;
}

}  // namespace satune
