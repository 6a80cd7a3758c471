// Activations on their way to the host and back. The copies here are made as late as they may be, so that
// whoever does not wait reads memory that nobody has written.
#include "model/activation_offload.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "model/llama.h"
#include "tests/model/late_copies.h"
#include "tests/model/models.h"

namespace satune {
namespace {

using testing::LateCopies;

struct Offloading {
  explicit Offloading(int layers) {
    auto late = std::make_unique<LateCopies>();
    copies = late.get();
    offload.emplace(at::kCPU, layers, std::move(late));
  }
  LateCopies* copies;
  std::optional<ActivationOffload> offload;
};

TEST(ActivationOffload, ViewsComeBackWithTheirMemoryAndStrides) {
  Offloading o(2);
  const at::Tensor all = at::randn({6, 10, 4}, at::kBFloat16);
  at::Tensor q = all.narrow(1, 0, 6), v = all.narrow(1, 8, 2), alone = at::randn({5});
  const at::Tensor q_before = q.clone(), v_before = v.clone(), alone_before = alone.clone();
  o.offload->store(0, {&q, &v, &alone});
  EXPECT_FALSE(q.defined() || v.defined() || alone.defined());
  EXPECT_EQ(o.copies->waiting(), 2);  // two storages for three views
  o.offload->restore(0);
  EXPECT_TRUE(q.equal(q_before) && v.equal(v_before) && alone.equal(alone_before));
  EXPECT_EQ(q.strides(), all.narrow(1, 0, 6).strides());
  EXPECT_TRUE(q.is_alias_of(v));
  EXPECT_EQ(o.copies->waiting(), 0);
}

TEST(ActivationOffload, TheCardHoldsOneLayerOnItsWay) {
  Offloading o(3);
  std::vector<at::Tensor> x;
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> memory;
  for (int layer = 0; layer < 3; ++layer) {
    x.push_back(at::full({64}, layer, at::kFloat));
    memory.emplace_back(
        c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(x.back().storage().unsafeGetStorageImpl()));
  }
  const auto held = [&] {
    std::vector<bool> alive;
    for (const auto& storage : memory) alive.push_back(!storage.expired());
    return alive;
  };
  o.offload->store(0, {&x[0]});
  EXPECT_EQ(held(), (std::vector<bool>{true, true, true}));  // its copy is in progress
  o.offload->store(1, {&x[1]});
  EXPECT_EQ(held(), (std::vector<bool>{false, true, true}));
  o.offload->settle();
  EXPECT_EQ(held(), (std::vector<bool>{false, false, true}));  // nobody stored layer 2

  o.offload->restore(2);  // nothing to do
  EXPECT_EQ(x[2][0].item<float>(), 2);
  o.offload->fetch(1);
  EXPECT_FALSE(x[1].defined());
  o.offload->restore(1);
  o.offload->fetch(0);
  EXPECT_EQ(x[1][0].item<float>(), 1);
  EXPECT_EQ(o.copies->waiting(), 1);  // layer 0 is on its way
  o.offload->restore(0);
  EXPECT_EQ(x[0][63].item<float>(), 0);
}

TEST(ActivationOffload, ABrokenPassLeavesNothingBehind) {
  Offloading o(2);
  at::Tensor first = at::ones({8}), second = at::ones({8});
  o.offload->store(0, {&first});
  o.offload->store(1, {&second});
  o.offload->fetch(0);
  o.offload->forget();
  EXPECT_EQ(o.copies->waiting(), 0);  // no copy writes into memory that others are given next
  o.offload->restore(0);
  EXPECT_FALSE(first.defined());
  at::Tensor larger = at::full({16}, 3.0);
  o.offload->store(0, {&larger});
  o.offload->restore(0);
  EXPECT_EQ(larger.sum().item<double>(), 48);
  at::Tensor smaller = at::full({2}, 5.0);
  o.offload->store(0, {&smaller});
  o.offload->restore(0);
  EXPECT_EQ(smaller.storage().nbytes(), 2 * sizeof(float));  // of the batch, not of the largest one before
  EXPECT_EQ(smaller.sum().item<double>(), 10);
}

// Of the last copy of a pass that was waited for the number is known; of none that was never made.
TEST(ActivationOffload, ACopyThatFailsLeavesNothingBehind) {
  for (const int64_t taken : {0, 1, 2, 3}) {
    Offloading o(2);
    at::Tensor a = at::ones({8}), b = at::ones({8}), c = at::ones({8}), d = at::ones({8});
    o.copies->fail_after(taken);
    EXPECT_THROW(
        {
          o.offload->store(0, {&a, &b});
          o.offload->store(1, {&c, &d});
        },
        std::runtime_error);
    o.copies->fail_after(-1);
    o.offload->forget();
    EXPECT_EQ(o.copies->waiting(), 0) << taken;
    at::Tensor again = at::full({4}, 2.0);
    o.offload->store(1, {&again});
    o.offload->restore(1);
    EXPECT_EQ(again.sum().item<double>(), 8);
  }
}

std::vector<at::Tensor> results(Llama& model, const std::vector<Recording>& recording, SegmentHooks& hooks) {
  ParameterBuffers gradients = model.make_gradients(model.weights().type());
  const int64_t vocabulary = model.config().vocab_size;
  // A smaller micro-batch second: the host's buffers are those of the first.
  LossSums sums = model.forward_backward(testing::make_batch({33, 12, 3}, vocabulary), 0.125, gradients,
                                         false, recording, hooks);
  std::vector<at::Tensor> all{sums.loss, sums.correct};
  sums =
      model.forward_backward(testing::make_batch({7}, vocabulary), 0.125, gradients, true, recording, hooks);
  all.insert(all.end(), {sums.loss, sums.correct});
  for (int segment = 0; segment < gradients.num_segments(); ++segment) all.push_back(gradients.flat(segment));
  return all;
}

void expect_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << "result " << i;
}

LateCopies* offload(Llama& model) {
  auto late = std::make_unique<LateCopies>();
  LateCopies* copies = late.get();
  model.offload_activations_by(std::move(late));
  return copies;
}

class OffloadedLlama : public ::testing::TestWithParam<std::tuple<std::string, Recording>> {};

TEST_P(OffloadedLlama, HasTheBitsOfOneThatKeepsAll) {
  const auto& [shared, policy] = GetParam();
  const ModelConfig config =
      shared.empty() ? testing::small_config(8) : testing::shared_config(shared, AnchorRule::kBefore);
  const auto recording = testing::all_layers(config, policy);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const char* trained : {"", "model.layers.[5-7]."}) {
      const TensorTable table(config);
      const std::vector<bool> mask =
          *trained == '\0' ? std::vector<bool>() : match_unfrozen(table, {std::string(trained)});
      Llama model = testing::make_model(config, type, mask);
      SegmentHooks hooks;
      const auto expected = results(model, recording, hooks);
      const LateCopies* copies = offload(model);
      expect_equal(results(model, recording, hooks), expected);
      EXPECT_EQ(copies->waiting(), 0);
      EXPECT_GT(copies->made(), 0);
      model.offload_activations_by(nullptr);
      expect_equal(results(model, recording, hooks), expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Plans, OffloadedLlama,
                         ::testing::Combine(::testing::Values("", "4-6", "2-3,5-7"),
                                            ::testing::Values(Recording::kKeep, Recording::kSelective,
                                                              Recording::kRecompute)));

TEST(OffloadedLlama, APassThatThrowsIsForgotten) {
  struct Throwing : SegmentHooks {
    int segment = -1;
    void before_backward(int at) override {
      if (at == segment) throw std::runtime_error("stop");
    }
    void before_forward(int at) override {
      if (at + 100 == segment) throw std::runtime_error("stop");
    }
  } hooks;
  Llama model = testing::make_model(testing::shared_config("4-6", AnchorRule::kFirst), at::kFloat);
  const auto recording = testing::all_layers(model.config(), Recording::kSelective);
  const auto expected = results(model, recording, hooks);
  const LateCopies* copies = offload(model);
  for (const int segment : {4, 1, 9, 103, 109}) {
    hooks.segment = segment;
    EXPECT_THROW(results(model, recording, hooks), std::runtime_error);
    EXPECT_EQ(copies->waiting(), 0);
    hooks.segment = -1;
    expect_equal(results(model, recording, hooks), expected);
  }
}

TEST(OffloadedLlama, APassWhoseCopyFailsIsForgotten) {
  Llama model = testing::make_model(testing::small_config(8), at::kFloat);
  const auto recording = testing::all_layers(model.config(), Recording::kSelective);
  SegmentHooks hooks;
  const auto expected = results(model, recording, hooks);
  LateCopies* copies = offload(model);
  for (const int64_t taken : {0, 1, 17, 30, 40}) {  // seven layers of five storages, and back
    copies->fail_after(taken);
    EXPECT_THROW(results(model, recording, hooks), std::runtime_error) << taken;
    EXPECT_EQ(copies->waiting(), 0) << taken;
    copies->fail_after(-1);
    expect_equal(results(model, recording, hooks), expected);
  }
}

}  // namespace
}  // namespace satune
