// What a step really runs - matrix products, attention, the order of its parts, what a card's host would wait
// for - against the model that `satune plan` and `satune bench` count with.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "model/step_trace.h"
#include "tests/model_configs.h"
#include "tests/trainer/rank_threads.h"
#include "trainer/bench_work.h"
#include "trainer/coordinator.h"
#include "trainer/step.h"
#include "trainer/synthetic_data.h"
#include "trainer/synthetic_weights.h"

namespace satune::trainer_test {
namespace {

using ::testing::ElementsAreArray;
using ::testing::IsEmpty;

using Path = std::vector<std::string>;

/// FLOPs of a call, as bench_work.h counts them.
double flops_of(std::string_view op, c10::ArrayRef<const c10::IValue> inputs) {
  const auto sizes = [&](size_t i) { return inputs[i].toTensor().sizes(); };
  const auto product = [](c10::IntArrayRef a, c10::IntArrayRef b) {
    return 2.0 * static_cast<double>(a[0] * a[1] * b[1]);
  };
  if (op == "aten::mm") return product(sizes(0), sizes(1));
  if (op == "aten::addmm") return product(sizes(1), sizes(2));
  // Of q [N, H, D] and the documents' starts: two products forward, five backward, each halved by causality.
  const auto attention = [&](double products) {
    const std::vector<int64_t> starts = inputs[1].toIntVector();
    double flops = 0;
    for (size_t i = 0; i + 1 < starts.size(); ++i) {
      const int64_t length = starts[i + 1] - starts[i];
      flops += products * static_cast<double>(sizes(0)[1] * length * length * sizes(0)[2]);
    }
    return flops;
  };
  if (op == "satune::flash_cpu_forward") return attention(2);
  if (op == "satune::flash_cpu_backward") return attention(5);
  return 0;
}

/// Calls that no card can answer before all that is queued on it has run.
const std::set<std::string> kWaits = {"aten::_local_scalar_dense",
                                      "aten::nonzero",
                                      "aten::masked_select",
                                      "aten::is_nonzero",
                                      "aten::equal",
                                      "aten::_unique2",
                                      "aten::bincount"};

/// Writes down which parts begin, and what runs in them.
class StepLog final : public StepTrace {
 public:
  StepLog() {
    log = this;
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback(&StepLog::on_call).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
  }
  ~StepLog() override {
    at::removeCallback(handle_);
    log = nullptr;
  }

  size_t begin(const char* name, int64_t number) override {
    std::string kind = name;
    if (const size_t place = kind.find(" {}"); place != std::string::npos) kind.erase(place, 3);
    path_.push_back(kind);
    std::string line(2 * (path_.size() - 1), ' ');
    order.push_back(line + kind + (number < 0 ? "" : " " + std::to_string(number)));
    return path_.size() - 1;
  }
  void end(size_t part) override { path_.resize(part); }
  size_t depart(const char*, int64_t) override { return 0; }
  void arrive(size_t) override {}

  std::map<Path, double> flops;
  std::vector<std::string> order, waits;

 private:
  static std::unique_ptr<at::ObserverContext> on_call(const at::RecordFunction& call) {
    if (log == nullptr) return nullptr;
    const std::string op = call.name();
    if (kWaits.contains(op)) log->waits.push_back(op);
    if (const double count = flops_of(op, call.inputs()); count > 0) log->flops[log->path_] += count;
    return nullptr;
  }

  static thread_local StepLog* log;
  at::CallbackHandle handle_ = 0;
  Path path_;
};
thread_local StepLog* StepLog::log = nullptr;

constexpr int64_t kRowLength = 24, kDocumentLength = 8, kMicroSteps = 2;

Settings small_settings(const std::vector<std::string>& more) {
  std::vector<std::string> overrides = {"model_name_or_path=.",
                                        "output_dir=unused",
                                        "train_file=unused",
                                        "precision=fp32",
                                        "per_device_train_batch_size=2",
                                        fmt::format("gradient_accumulation_steps={}", kMicroSteps)};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return parse_settings("{}", "step_work_test", overrides);
}

/// One step of a model with random weights, written down.
struct LoggedStep {
  explicit LoggedStep(ModelConfig model_config, Recording policy)
      : config(std::move(model_config)),
        recording(static_cast<size_t>(config.num_hidden_layers), policy),
        model(config, {}, at::kFloat, at::kCPU),
        data(synthetic_rows({.rows = 2 * kMicroSteps,
                             .row_length = kRowLength,
                             .document_length = kDocumentLength,
                             .vocab_size = config.vocab_size})) {
    fill_synthetic(model.weights(), 0.02);
    const Settings settings = small_settings({});
    AdamW optimizer(model.weights().trained, AdamWOptions(settings));
    Sharding sharding(model, groups, *coordinator, 0, at::kFloat);
    TrainingStep step(model, sharding, optimizer, groups, *coordinator, data, settings, recording);
    coordinator->set_trace(&log);
    {
      const TracedPart part(&log, "step {}", 1);
      result = step.run({0, 0, 2 * kMicroSteps}, 1e-3, 1);
    }
    coordinator->set_trace(nullptr);
  }

  WorkShape shape() const {
    return {config, 2 * kRowLength, kDocumentLength, kMicroSteps, 4, 4, true, recording, 0, 0};
  }
  /// Of the tokens those that have a target.
  double trained_share() const { return (kDocumentLength - 1.0) / kDocumentLength; }

  ModelConfig config;
  std::vector<Recording> recording;
  Llama model;
  std::unique_ptr<ProcessGroup> group = make_local_group();
  ProcessGroups groups{*group, *group, *group};
  std::unique_ptr<Coordinator> coordinator = make_solo_coordinator([] { return std::string(); });
  BatchSource data;
  StepLog log;
  StepResult result;
};

ModelConfig config_with(std::string_view shared_layers, bool tied = false) {
  ModelConfig config = model_configs::config_of(
      {.vocabulary = 50, .hidden = 16, .ffn = 24, .layers = 4, .heads = 4, .kv_heads = 2, .head_dim = 4});
  config.tie_word_embeddings = tied;
  if (!shared_layers.empty()) config.sharing = SharingPlan::parse(shared_layers, AnchorRule::kBefore, 4);
  return config;
}

class StepWork : public ::testing::TestWithParam<std::tuple<std::string, bool, Recording>> {};

TEST_P(StepWork, ProductsAreThoseOfTheModel) {
  const auto& [shared, tied, recording] = GetParam();
  const LoggedStep step(config_with(shared, tied), recording);
  ASSERT_TRUE(step.result.updated);
  const WorkShape shape = step.shape();
  double counted = 0;
  for (const auto& [path, flops] : step.log.flops) {
    double expected = work_of(shape, path).flops;
    // Rows without a target are not projected to the vocabulary.
    if (path.back() == part::kLoss) expected *= step.trained_share();
    EXPECT_DOUBLE_EQ(flops, expected) << ::testing::PrintToString(path);
    counted += flops;
  }
  // And nothing that the model counts is missing: every product of the layers and the head.
  const auto modelled_flops = [&](Path path) { return work_of(shape, path).flops; };
  double modelled = step.trained_share() * modelled_flops({"step", "head backward", part::kLoss});
  for (const char* part : {part::kQkv, part::kAttention, part::kOutput, part::kGateUp, part::kDown}) {
    modelled +=
        modelled_flops({"step", "layer forward", part}) + modelled_flops({"step", "layer backward", part});
    modelled += modelled_flops({"step", "layer backward", part::kAgain, part});
  }
  EXPECT_DOUBLE_EQ(counted, modelled);
}

TEST_P(StepWork, NothingWaitsForTheDevice) {
  const auto& [shared, tied, recording] = GetParam();
  const LoggedStep step(config_with(shared, tied), recording);
  ASSERT_TRUE(step.result.updated);
  EXPECT_THAT(step.log.waits, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Models, StepWork,
                         ::testing::Combine(::testing::Values("", "2-3", "1,3"), ::testing::Bool(),
                                            ::testing::Values(Recording::kKeep, Recording::kSelective,
                                                              Recording::kRecompute)));

/// The parts of one micro-batch and of the step's end, in the order in which they are queued.
std::vector<std::string> expected_order(const ModelConfig& config, bool selective) {
  std::vector<std::string> lines = {"step 1"};
  const auto put = [&](int depth, const std::string& name) {
    lines.push_back(std::string(2 * depth, ' ') + name);
  };
  for (int micro_step = 0; micro_step < kMicroSteps; ++micro_step) {
    put(1, "data");
    put(1, "upload of a micro-batch");
    put(1, "embedding forward");
    for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
      put(1, "layer forward " + std::to_string(layer));
      put(2, part::kNorm);
      put(2, part::kQkv);
      if (!config.sharing.is_shared(layer)) put(2, part::kRope);
      for (const char* part :
           {part::kAttention, part::kOutput, part::kNorm, part::kGateUp, part::kSwiglu, part::kDown})
        put(2, part);
    }
    put(1, "head forward");
    put(2, part::kNorm);
    put(1, "head backward");
    put(2, part::kLoss);
    put(2, part::kNorm);
    for (int layer = config.num_hidden_layers - 1; layer >= 0; --layer) {
      put(1, "layer backward " + std::to_string(layer));
      if (selective) {
        put(2, part::kAgain);
        put(3, part::kNorm);
        put(3, part::kNorm);
        put(3, part::kSwiglu);
      }
      for (const char* part :
           {part::kDown, part::kSwiglu, part::kGateUp, part::kNorm, part::kOutput, part::kAttention})
        put(2, part);
      if (config.sharing.is_shared(layer) || config.sharing.is_anchor(layer)) put(2, part::kSpan);
      if (!config.sharing.is_shared(layer)) put(2, part::kRope);
      put(2, part::kQkv);
      put(2, part::kNorm);
    }
    put(1, "embedding backward");
  }
  put(1, "norm of the gradients");
  put(1, "exchange of loss and norm");
  put(1, "optimizer");
  return lines;
}

TEST(StepOrder, IsThatOfTheModel) {
  for (const char* shared : {"", "2-3"}) {
    for (const bool selective : {false, true}) {
      const LoggedStep step(config_with(shared), selective ? Recording::kSelective : Recording::kKeep);
      EXPECT_THAT(step.log.order, ElementsAreArray(expected_order(step.config, selective))) << shared;
    }
  }
}

}  // namespace
}  // namespace satune::trainer_test
