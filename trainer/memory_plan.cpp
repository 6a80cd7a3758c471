#include "trainer/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "model/ops/attention.h"
#include "model/ops/attention_cudnn.h"
#include "model/ops/fp8.h"
#include "model/ops/product_type.h"
#include "trainer/compute_types.h"
#include "trainer/host_allocator.h"
#include "trainer/host_staging.h"
#include "trainer/optimizer_state.h"
#include "trainer/progress.h"

namespace satune {
namespace {

constexpr int64_t kFloatBytes = 4;
// MKL keeps buffers of packed operands: 5.0 MiB with one thread, 10.0 with two (sgemm of LibTorch 2.11.0,
// first call; no more for later or larger ones).
constexpr int64_t kMklBytesPerThread = int64_t{5} << 20;
// LibTorch's workspace for cuBLAS, from its allocator: 32 MiB on cards of compute capability 9.0, 8 on
// others.
constexpr int64_t kCublasBytes = int64_t{32} << 20;

constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200

int64_t sum_of(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

bool products_are_widened(Precision precision) {
  if (precision == Precision::kFp32) return false;
  return cpu_product_type(precision == Precision::kFp16 ? at::kHalf : at::kBFloat16) == at::kFloat;
}

/// Materialised, of one document: probabilities, their gradient, and four on the way to the scores'; what
/// reads and makes them in the statistics' type, with the heads of keys and values repeated.
std::vector<int64_t> eager_buffers(const ModelConfig& config, int64_t length) {
  std::vector<int64_t> buffers(6, config.num_attention_heads * length * length * kFloatBytes);
  buffers.insert(buffers.end(), 4, length * config.query_size() * kFloatBytes);
  return buffers;
}

/// One a row where only the data tells.
int64_t documents_of(const PlannedRun& run) {
  return run.documents > 0 ? run.documents : run.settings.per_device_train_batch_size;
}

/// LibTorch's flash attention: sums of dQ in fp32 and sum(dO * O), with 128 rows more for each document and
/// heads rounded up; the gradients of q, k and v; dK and dV of all query heads. In a fixed order as many sums
/// of dQ as keep the card busy.
std::vector<int64_t> flash_buffers(const PlannedRun& run) {
  const ModelConfig& config = run.config;
  const int64_t documents = documents_of(run), heads = config.num_attention_heads,
                element = compute_element_bytes(run.settings.precision), query = config.query_size(),
                key = config.key_value_size(), step = config.head_dim <= 128 ? 32 : 64;
  const int64_t padded = run.tokens + 128 * documents, width = (config.head_dim + step - 1) / step * step;
  const int64_t blocks = documents * heads,
                sums = run.settings.deterministic ? (kMultiprocessors + blocks - 1) / blocks : 1;
  return {sums * padded * heads * width * kFloatBytes, padded * heads * kFloatBytes,
          run.tokens * (query + 2 * key) * element, key == query ? 0 : run.tokens * 2 * query * element};
}

/// LibTorch's memory-efficient attention in fp32: keys and values of all query heads where heads are grouped;
/// gradients of q, k and v; dO * O; sums of dQ in blocks of 64 rows, of documents of different lengths up to
/// twice as large.
std::vector<int64_t> efficient_buffers(const PlannedRun& run) {
  const ModelConfig& config = run.config;
  const int64_t row = config.query_size() * kFloatBytes, queries = run.tokens * row;
  std::vector<int64_t> buffers(config.num_attention_heads == config.num_key_value_heads ? 4 : 6, queries);
  const int64_t length = run.tokens / documents_of(run), rounded = (length + 63) / 64 * 64;
  buffers.insert(buffers.end(), {run.documents > 0 ? run.documents * rounded * row : 2 * queries,
                                 run.tokens * config.num_attention_heads * kFloatBytes});
  return buffers;
}

/// cuDNN's workspace, and dK and dV of packed documents.
std::vector<int64_t> cudnn_buffers(const PlannedRun& run) {
  const ModelConfig& config = run.config;
  const int64_t documents = documents_of(run), length = run.tokens / documents;
  std::vector<int64_t> starts(static_cast<size_t>(documents) + 1);
  for (size_t i = 0; i < starts.size(); ++i) starts[i] = static_cast<int64_t>(i) * length;
  CudnnShape shape;
  // Rows of which only the data tells may be of any documents: they are packed.
  shape.documents = cudnn_documents(starts, run.documents > 0 ? run.settings.max_length : 0);
  shape.heads = config.num_attention_heads;
  shape.kv_heads = config.num_key_value_heads;
  shape.head_dim = config.head_dim;
  const int64_t key = config.key_value_size();
  shape.row[kDQuery] = config.query_size() + 2 * key;  // a shared layer's are less
  std::vector<int64_t> buffers = {cudnn_workspace_bytes(shape)};
  if (shape.documents.packed && shape.heads != shape.kv_heads)
    buffers.insert(buffers.end(), 2, run.tokens * key * compute_element_bytes(run.settings.precision));
  return buffers;
}

AttentionKernel attention_kernel(const PlannedRun& run) {
  if (run.attention) return *run.attention;
  const AttnImplementation wanted = run.settings.attn_implementation;
  if (wanted == AttnImplementation::kEager) return AttentionKernel::kEager;
  const bool flash = !run.on_card || wanted == AttnImplementation::kFlash;
  return flash || run.settings.precision == Precision::kFp32 ? AttentionKernel::kFlash
                                                             : AttentionKernel::kCudnn;
}

/// Buffers of attention's backward beside its tensors (attention_forward(), choose_attention()).
std::vector<int64_t> attention_buffers(const PlannedRun& run) {
  const Settings& settings = run.settings;
  const int64_t rows = settings.per_device_train_batch_size, length = std::max<int64_t>(1, run.tokens / rows);
  const AttentionKernel kernel = attention_kernel(run);
  if (kernel == AttentionKernel::kEager) return eager_buffers(run.config, length);
  if (!run.on_card)
    return attention_backward_buffers(weight_type(settings.precision), rows, length,
                                      run.config.num_attention_heads, run.config.num_key_value_heads,
                                      run.config.head_dim, run.threads);
  if (settings.precision == Precision::kFp32) return efficient_buffers(run);
  // In a fixed order flash's backward follows either forward.
  return kernel == AttentionKernel::kFlash || settings.deterministic ? flash_buffers(run)
                                                                     : cudnn_buffers(run);
}

/// Weights, gradients and optimizer state: what a stage cuts.
void plan_state(MemoryPlan& plan, const PlannedRun& run, const Sharded& sharded, const SegmentSizes& sizes) {
  const Settings& settings = run.settings;
  const int64_t shares = sharded.shares(), stage = sharded.stage;
  const bool alone = sharded.world_size == 1;
  const int64_t element = compute_element_bytes(settings.precision);
  const int64_t gradient_element = gradient_element_bytes(settings, {0, sharded.world_size});
  const int64_t trained = sum_of(sizes.trained), all = trained + sum_of(sizes.frozen);
  const ShardSchedule schedule = shard_schedule(sizes, sharded);

  plan.weights = (stage < 3 ? all : all / shares) * element;
  if (settings.fp8 && fp8_weights_are_kept(stage))  // by rows, and by columns where a backward comes
    plan.weights8 = fp8_parameters(run.table) + fp8_parameters(run.table, sizes.lowest_trained());
  plan.gathered = schedule.parameter_pool * element;
  const int64_t whole = alone || stage < 2 ? trained : 0;
  const int64_t pool = run.on_card ? schedule.gradient_pool : schedule.gradient_pool_touched;
  plan.gradients = (whole + pool) * gradient_element;
  if (!alone) plan.sums = trained / shares * kFloatBytes;
  plan.gathered_sums = schedule.replica_pool * kFloatBytes;
  if (!alone && stage == 0) plan.gathered_sums += trained * kFloatBytes;

  const int64_t owned = stage == 0 ? trained : trained / shares;
  const StateFormat format(settings);
  const OptimizerBytes optimizer = optimizer_bytes(format, settings.precision, owned);
  if (run.on_card && settings.optimizer_offload == OptimizerOffload::kCpu) {
    // The weights of fp32 runs, and those that are part of the state, have a copy there.
    const bool own = settings.precision != Precision::kFp32 && format.master_weights == MasterWeights::kFp32;
    plan.host += optimizer.master + optimizer.moments + (own ? 0 : owned * element);
    const int64_t longest = *std::max_element(sizes.trained.begin(), sizes.trained.end());
    const int64_t piece = std::min(kHostPiece, stage == 0 ? longest : longest / shares);
    plan.host += pinned_bytes(host_staging_buffers(piece, element));
  } else {
    plan.master = optimizer.master;
    plan.moments = optimizer.moments;
  }
  if (settings.async_save) {
    (run.on_card ? plan.host : plan.snapshot_copy) += stored_bytes(stored_parts(format), trained / shares);
  }
}

}  // namespace

int64_t fp8_parameters_of(const TensorTable& table, int segment) {
  if (segment == 0 || segment == table.num_segments() - 1) return 0;
  int64_t count = 0, qkv = 0, gate_up = 0,
          hidden = 0;  // outputs of tensors that are one product; their inputs
  for (const TensorInfo& tensor : table.segment(segment)) {
    if (tensor.shape.size() != 2) continue;
    const int64_t outputs = tensor.shape[0], inputs = tensor.shape[1];
    if (tensor.role == TensorRole::kOutput || tensor.role == TensorRole::kDown) {
      if (takes_fp8(outputs, inputs)) count += outputs * inputs;
      continue;
    }
    const bool of_mlp = tensor.role == TensorRole::kGate || tensor.role == TensorRole::kUp;
    (of_mlp ? gate_up : qkv) += outputs;
    hidden = inputs;
  }
  for (const int64_t outputs : {qkv, gate_up}) {
    if (takes_fp8(outputs, hidden)) count += outputs * hidden;
  }
  return count;
}

int64_t fp8_parameters(const TensorTable& table, int lowest_segment) {
  int64_t count = 0;
  for (int segment = lowest_segment; segment < table.num_segments(); ++segment)
    count += fp8_parameters_of(table, segment);
  return count;
}

int64_t compute_element_bytes(Precision precision) {
  return precision == Precision::kFp32 ? kFloatBytes : 2;
}

int64_t gradient_element_bytes(const Settings& settings, const World& world) {
  const bool summed_in_place = world.size == 1 && settings.gradient_accumulation_steps > 1;
  return settings.precision == Precision::kBf16 && !summed_in_place ? 2 : kFloatBytes;
}

std::vector<std::pair<std::string, int64_t>> MemoryPlan::items() const {
  return {{"weights", weights},         {"8-bit weights", weights8}, {"gathered weights", gathered},
          {"gradients", gradients},     {"summed gradients", sums},  {"gathered sums", gathered_sums},
          {"master", master},           {"moments", moments},        {"snapshot copy", snapshot_copy},
          {"activations", activations}, {"working", working},        {"libraries", libraries}};
}

int64_t MemoryPlan::total() const {
  int64_t bytes = 0;
  for (const auto& [name, item] : items()) bytes += item;
  return bytes;
}

std::vector<std::string> memory_table(const MemoryPlan& plan, int64_t available) {
  const auto bytes = [](int64_t value) { return format_bytes(static_cast<double>(value)); };
  std::vector<std::string> lines = {"memory of a rank, planned"};
  for (const auto& [name, item] : plan.items()) {
    if (item > 0) lines.push_back(fmt::format("  {:<17} {:>10}", name, bytes(item)));
  }
  lines.push_back(fmt::format("  {:<17} {:>10} of {}", "in all", bytes(plan.total()), bytes(available)));
  if (plan.host > 0) lines.push_back(fmt::format("  {:<17} {:>10}", "in host memory", bytes(plan.host)));
  return lines;
}

MemoryPlan plan_memory(const PlannedRun& run, const Sharded& sharded, int64_t available) {
  const SegmentSizes sizes(run.table, run.trained_mask, sharded.world_size);
  MemoryPlan plan;
  plan_state(plan, run, sharded, sizes);
  plan.libraries = run.on_card ? kCublasBytes : run.threads * kMklBytesPerThread;
  const bool half_products = !run.on_card && run.settings.precision != Precision::kFp32;
  if (half_products && !products_are_widened(run.settings.precision))
    plan.libraries += kKeptProducts * kProductBytes;
  const Settings& settings = run.settings;
  PassShape shape{run.config, run.tokens};
  shape.element = compute_element_bytes(settings.precision);
  shape.gradient_element = gradient_element_bytes(settings, {0, sharded.world_size});
  shape.on_card = run.on_card;
  shape.widened = !run.on_card && products_are_widened(settings.precision);
  shape.lowest_trained = sizes.lowest_trained();
  shape.fp8 = settings.fp8;
  shape.fp8_weights_kept = fp8_weights_are_kept(sharded.stage);
  shape.offloads = run.on_card && settings.activation_offloading;
  shape.attention = attention_buffers(run);
  plan.recording = choose_recording(run.settings.gradient_checkpointing, shape, available - plan.total());
  const PassBytes pass = pass_bytes(shape, plan.recording);
  plan.activations = pass.kept;
  plan.working = pass.working;
  plan.working_layer = pass.layer;
  plan.working_loss = pass.loss;
  plan.host_activations = pass.host;
  plan.host += pass.host;
  return plan;
}

StageChoice choose_zero_stage(const PlannedRun& run, int64_t world_size, int64_t available) {
  const int64_t shard_group = shard_group_size(run.settings, world_size);
  if (world_size == 1) return {0, "zero_stage: 0, one process holds everything"};
  if (run.settings.zero_stage) {
    return {*run.settings.zero_stage, fmt::format("zero_stage: {}, as configured", *run.settings.zero_stage)};
  }
  const auto bytes = [](int64_t value) { return format_bytes(static_cast<double>(value)); };
  std::string too_large;
  for (int64_t stage = 0; stage <= kHighestStage; ++stage) {
    const int64_t need = plan_memory(run, {world_size, stage, shard_group}, available).total();
    if (need <= available) {
      const std::string why =
          stage == 0 ? fmt::format("it needs {} a rank, {} available", bytes(need), bytes(available))
                     : too_large;
      return {stage, fmt::format("zero_stage auto: {} ({})", stage, why)};
    }
    too_large =
        fmt::format("stage {} would need {} a rank, {} available", stage, bytes(need), bytes(available));
  }
  return {kHighestStage, fmt::format("zero_stage auto: {} ({}: this will not fit)", kHighestStage,
                                     fmt::format("even {}", too_large))};
}

}  // namespace satune
