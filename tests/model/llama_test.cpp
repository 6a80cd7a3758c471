#include "model/llama.h"

#include <gtest/gtest.h>

#include "data/files/error.h"
#include "tests/model/eager.h"
#include "tests/model/models.h"

namespace satune {
namespace {

using testing::all_layers;
using testing::make_batch;
using testing::make_model;
using testing::relative_difference;
using testing::shared_config;
using testing::small_config;

struct Case {
  std::string name;
  ModelConfig config;
};

void PrintTo(const Case& value, std::ostream* out) {
  *out << value.name;
}

std::vector<Case> cases() {
  std::vector<Case> all = {
      {"Plain", small_config()},
      {"Tied", small_config(4, true)},
      {"Before", shared_config("4-6", AnchorRule::kBefore)},
      {"First", shared_config("4-6", AnchorRule::kFirst)},
      {"SeveralRunsBefore", shared_config("2-3,5-7", AnchorRule::kBefore)},
      {"SeveralRunsFirst", shared_config("0-2,5-7", AnchorRule::kFirst)},
  };
  ModelConfig scaled = small_config();
  scaled.rope_scaling = Llama3RopeScaling{8.0, 1.0, 4.0, 16};
  all.push_back({"RopeScaling", scaled});
  ModelConfig multi_head = small_config(3);
  multi_head.num_key_value_heads = multi_head.num_attention_heads;
  all.push_back({"MultiHead", multi_head});
  return all;
}

class AgainstEager : public ::testing::TestWithParam<Case> {};

TEST_P(AgainstEager, LossAndEveryGradientInDouble) {
  const ModelConfig& config = GetParam().config;
  Llama model = make_model(config, at::kDouble);
  const DeviceBatch batch = make_batch({13, 1, 22, 7}, config.vocab_size);
  const double scale = 1.0 / static_cast<double>(batch.targets.count());

  const eager::Tensors leaves = eager::leaves(model);
  const at::Tensor expected = eager::loss_sum(config, leaves, batch);
  (expected * scale).backward();

  ParameterBuffers gradients = model.make_gradients(at::kDouble);
  SegmentHooks hooks;
  const LossSums sums =
      model.forward_backward(batch, scale, gradients, false, all_layers(config, Recording::kKeep), hooks);
  EXPECT_NEAR(sums.loss.item<double>(), expected.item<double>(), 1e-10 * expected.item<double>());
  for (size_t i = 0; i < model.table().tensors().size(); ++i) {
    const std::string& name = model.table().tensors()[i].name;
    EXPECT_LT(relative_difference(gradients.tensor(i), leaves.at(name).grad()), 1e-10) << name;
  }
}

// pain: packing contamination. rival: documents concatenated under one causal mask.
TEST_P(AgainstEager, LogitsOfPackedDocumentsEqualThoseOfEachAlone) {
  const ModelConfig& config = GetParam().config;
  Llama model = make_model(config, at::kDouble);
  const DeviceBatch batch = make_batch({9, 30, 4}, config.vocab_size);
  const at::Tensor logits = model.logits(batch);
  const eager::Tensors leaves = eager::leaves(model);
  for (size_t i = 0; i + 1 < batch.document_starts.size(); ++i) {
    const int64_t start = batch.document_starts[i], length = batch.document_starts[i + 1] - start;
    const at::Tensor alone =
        eager::document_logits(config, leaves, batch.tokens_N.narrow(0, start, length)).detach();
    EXPECT_LT(relative_difference(logits.narrow(0, start, length), alone), 1e-10) << "document " << i;
  }
}

TEST_P(AgainstEager, SinglePrecisionStaysClose) {
  const ModelConfig& config = GetParam().config;
  Llama model = make_model(config, at::kFloat);
  const DeviceBatch batch = make_batch({40, 17}, config.vocab_size);
  eager::Tensors leaves;
  for (const auto& [name, value] : eager::leaves(model)) {
    leaves[name] = value.detach().to(at::kDouble).requires_grad_(true);
  }
  const at::Tensor expected = eager::loss_sum(config, leaves, batch);
  expected.backward();
  ParameterBuffers gradients = model.make_gradients(at::kFloat);
  SegmentHooks hooks;
  const LossSums sums =
      model.forward_backward(batch, 1.0, gradients, false, all_layers(config, Recording::kKeep), hooks);
  EXPECT_NEAR(sums.loss.item<double>() / expected.item<double>(), 1.0, 1e-6);
  for (size_t i = 0; i < model.table().tensors().size(); ++i) {
    const std::string& name = model.table().tensors()[i].name;
    EXPECT_LT(relative_difference(gradients.tensor(i), leaves.at(name).grad()), 2e-5) << name;
  }
}

/// Everything one micro-batch produces, for bitwise comparisons.
std::vector<at::Tensor> results(Llama& model, const DeviceBatch& batch,
                                const std::vector<Recording>& recording, SegmentHooks& hooks) {
  ParameterBuffers gradients = model.make_gradients(model.weights().type());
  const LossSums sums = model.forward_backward(batch, 0.125, gradients, false, recording, hooks);
  std::vector<at::Tensor> all{sums.loss, sums.correct};
  for (int segment = 0; segment < gradients.num_segments(); ++segment) all.push_back(gradients.flat(segment));
  return all;
}

void expect_same_bits(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << "result " << i;
}

TEST_P(AgainstEager, RecordingPolicyDoesNotChangeABit) {
  const ModelConfig& config = GetParam().config;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    Llama model = make_model(config, type);
    const DeviceBatch batch = make_batch({33, 64, 5, 12, 3, 3, 9, 21, 2}, config.vocab_size);
    SegmentHooks hooks;
    const auto kept = results(model, batch, all_layers(config, Recording::kKeep), hooks);
    expect_same_bits(kept, results(model, batch, all_layers(config, Recording::kKeep), hooks));
    expect_same_bits(kept, results(model, batch, all_layers(config, Recording::kSelective), hooks));
    expect_same_bits(kept, results(model, batch, all_layers(config, Recording::kRecompute), hooks));
    std::vector<Recording> mixed = all_layers(config, Recording::kKeep);
    for (size_t i = 0; i < mixed.size(); ++i) mixed[i] = static_cast<Recording>(i % 3);
    expect_same_bits(kept, results(model, batch, mixed, hooks));
  }
}

/// Plays sharding: a segment's weights are there only between its before_ and after_ calls.
class PoisoningHooks : public SegmentHooks {
 public:
  explicit PoisoningHooks(Llama& model) : model_(model) {
    for (int segment = 0; segment < model.weights().trained.num_segments(); ++segment) {
      saved_.push_back(model.weights().trained.flat(segment).clone());
      poison(segment);
    }
  }
  ~PoisoningHooks() override {
    for (size_t segment = 0; segment < saved_.size(); ++segment) gather(static_cast<int>(segment));
  }
  void before_forward(int segment) override { use(segment, true); }
  void after_forward(int segment) override { use(segment, false); }
  void before_backward(int segment) override { use(segment, true); }
  void after_backward(int segment) override { use(segment, false); }

 private:
  void use(int segment, bool there) {
    const bool head = segment == model_.config().num_hidden_layers + 1;
    there ? gather(segment) : poison(segment);
    // A tied matrix belongs to segment 0 and is used by the head as well.
    if (head && model_.config().tie_word_embeddings) there ? gather(0) : poison(0);
  }
  void gather(int segment) { model_.weights().trained.flat(segment).copy_(saved_[segment]); }
  void poison(int segment) {
    model_.weights().trained.flat(segment).fill_(std::numeric_limits<double>::quiet_NaN());
  }

  Llama& model_;
  std::vector<at::Tensor> saved_;
};

TEST_P(AgainstEager, WeightsAreReadOnlyWhileTheirSegmentRuns) {
  const ModelConfig& config = GetParam().config;
  Llama model = make_model(config, at::kFloat);
  const DeviceBatch batch = make_batch({18, 9}, config.vocab_size);
  for (const Recording recording : {Recording::kKeep, Recording::kSelective, Recording::kRecompute}) {
    SegmentHooks none;
    const auto expected = results(model, batch, all_layers(config, recording), none);
    PoisoningHooks poison(model);
    expect_same_bits(expected, results(model, batch, all_layers(config, recording), poison));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AgainstEager, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(Llama, SharedLayersHaveNoQueryOrKey) {
  const Llama model = make_model(shared_config("4-6", AnchorRule::kBefore), at::kFloat);
  for (int layer = 0; layer < 8; ++layer) {
    const bool shared = layer >= 4 && layer <= 6;
    for (const char* name : {"q_proj", "k_proj"}) {
      const auto* info = model.table().find(fmt::format("model.layers.{}.self_attn.{}.weight", layer, name));
      EXPECT_EQ(info == nullptr, shared) << layer << name;
    }
    EXPECT_NE(model.table().find(fmt::format("model.layers.{}.self_attn.v_proj.weight", layer)), nullptr);
  }
}

TEST(Llama, AccumulatedMicroBatchesEqualOneBatch) {
  const ModelConfig config = shared_config("5-6", AnchorRule::kBefore);
  Llama model = make_model(config, at::kDouble);
  SegmentHooks hooks;
  ParameterBuffers whole = model.make_gradients(at::kDouble), parts = model.make_gradients(at::kDouble);
  const auto recording = all_layers(config, Recording::kKeep);
  const DeviceBatch both = make_batch({12, 20}, config.vocab_size);
  const double scale = 1.0 / static_cast<double>(both.targets.count());
  model.forward_backward(both, scale, whole, false, recording, hooks);
  // The second document's tokens depend on its place: `salt` moves it there.
  model.forward_backward(make_batch({12}, config.vocab_size), scale, parts, false, recording, hooks);
  model.forward_backward(make_batch({20}, config.vocab_size, 2, 12), scale, parts, true, recording, hooks);
  for (int segment = 0; segment < whole.num_segments(); ++segment) {
    EXPECT_LT(relative_difference(parts.flat(segment), whole.flat(segment)), 1e-12) << segment;
  }
}

TEST(Llama, BatchWithoutTargetsGivesExactZeros) {
  const ModelConfig config = shared_config("2-3", AnchorRule::kBefore, 4);
  Llama model = make_model(config, at::kFloat);
  DeviceBatch masked = make_batch({11, 6}, config.vocab_size);
  masked.targets = {};
  ParameterBuffers gradients = model.make_gradients(at::kFloat);
  for (int segment = 0; segment < gradients.num_segments(); ++segment) gradients.flat(segment).fill_(3.0);
  SegmentHooks hooks;
  const auto recording = all_layers(config, Recording::kKeep);
  const LossSums sums = model.forward_backward(masked, 1.0, gradients, false, recording, hooks);
  EXPECT_EQ(sums.loss.item<double>(), 0.0);
  for (size_t i = 0; i < model.table().tensors().size(); ++i) {
    EXPECT_EQ(gradients.tensor(i).abs().max().item<double>(), 0.0) << model.table().tensors()[i].name;
  }
  // Added to a real micro-batch it changes nothing.
  const DeviceBatch real = make_batch({11, 6}, config.vocab_size);
  model.forward_backward(real, 1.0, gradients, false, recording, hooks);
  ParameterBuffers again = model.make_gradients(at::kFloat);
  model.forward_backward(real, 1.0, again, false, recording, hooks);
  model.forward_backward(masked, 1.0, again, true, recording, hooks);
  for (size_t i = 0; i < model.table().tensors().size(); ++i) {
    EXPECT_TRUE(at::equal(again.tensor(i), gradients.tensor(i))) << model.table().tensors()[i].name;
  }
}

class Unfrozen : public ::testing::TestWithParam<std::vector<std::string>> {};

TEST_P(Unfrozen, GradientsEqualThoseOfTheFullModel) {
  const ModelConfig config = shared_config("4-6", AnchorRule::kBefore);
  Llama full = make_model(config, at::kDouble);
  Llama part = make_model(config, at::kDouble, match_unfrozen(full.table(), GetParam()));
  const DeviceBatch batch = make_batch({15, 8}, config.vocab_size);
  ParameterBuffers expected = full.make_gradients(at::kDouble), found = part.make_gradients(at::kDouble);
  SegmentHooks hooks;
  for (const Recording recording : {Recording::kKeep, Recording::kRecompute}) {
    full.forward_backward(batch, 1.0, expected, false, all_layers(config, recording), hooks);
    part.forward_backward(batch, 1.0, found, false, all_layers(config, recording), hooks);
    int64_t trained = 0;
    for (size_t i = 0; i < part.table().tensors().size(); ++i) {
      if (!found.selected(i)) continue;
      ++trained;
      EXPECT_LT(relative_difference(found.tensor(i), expected.tensor(i)), 1e-12)
          << part.table().tensors()[i].name;
    }
    EXPECT_GT(trained, 0);
    EXPECT_LT(found.numel(), expected.numel());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Patterns, Unfrozen,
    ::testing::Values(std::vector<std::string>{"model.layers.[4-6]."}, std::vector<std::string>{"lm_head"},
                      std::vector<std::string>{"model.norm"},
                      std::vector<std::string>{"model.layers.3.self_attn.k_proj"},
                      std::vector<std::string>{"model.layers.\\d.self_attn.v_proj"},
                      std::vector<std::string>{"model.layers.2.mlp.up_proj", "lm_head"},
                      std::vector<std::string>{"model.embed_tokens", "model.layers.7."}));

/// Counts how far down the backward goes.
class LowestSegment : public SegmentHooks {
 public:
  void before_backward(int segment) override { lowest = std::min(lowest, segment); }
  int lowest = 1000;
};

TEST(Llama, BackwardEndsBelowTheLowestTrainedLayer) {
  const ModelConfig config = shared_config("4-6", AnchorRule::kBefore);
  const TensorTable table(config);
  Llama model = make_model(config, at::kFloat, match_unfrozen(table, {"model.layers.5.mlp.down_proj"}));
  ParameterBuffers gradients = model.make_gradients(at::kFloat);
  LowestSegment hooks;
  model.forward_backward(make_batch({9}, config.vocab_size), 1.0, gradients, false,
                         all_layers(config, Recording::kKeep), hooks);
  EXPECT_EQ(hooks.lowest, 6);  // segment of layer 5
}

TEST(Llama, PatternThatMatchesNothingIsRefused) {
  const TensorTable table(small_config());
  EXPECT_THROW(match_unfrozen(table, {"model.layers.99."}), BadInput);
  EXPECT_THROW(match_unfrozen(table, {"model.layers.["}), BadInput);
}

TEST(Llama, EvaluateAgreesWithTrainingForward) {
  const ModelConfig config = shared_config("4-6", AnchorRule::kBefore);
  Llama model = make_model(config, at::kFloat);
  const DeviceBatch batch = make_batch({25, 14, 3}, config.vocab_size);
  ParameterBuffers gradients = model.make_gradients(at::kFloat);
  SegmentHooks hooks;
  const LossSums trained =
      model.forward_backward(batch, 1.0, gradients, false, all_layers(config, Recording::kRecompute), hooks);
  const LossSums evaluated = model.evaluate(batch);
  EXPECT_EQ(trained.loss.item<double>(), evaluated.loss.item<double>());
  EXPECT_EQ(trained.correct.item<int64_t>(), evaluated.correct.item<int64_t>());
  EXPECT_NEAR(model.token_losses(batch).to(at::kDouble).sum().item<double>(), evaluated.loss.item<double>(),
              1e-4);
}

}  // namespace
}  // namespace satune
