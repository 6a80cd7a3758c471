// The trainer's CUDA path against the CPU's, to the bit where both add in one order. Skipped by name where
// there is no card.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "tests/model_configs.h"
#include "trainer/adamw.h"
#include "trainer/gradient_norm.h"
#include "trainer/host_staging.h"
#include "trainer/sum_parts.h"

namespace satune::trainer_test {
namespace {

class CudaTrainer : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

void fill_waves(const ParameterBuffers& buffers, double size) {
  for (int i = 0; i < buffers.num_segments(); ++i) {
    const at::Tensor flat = buffers.flat(i);
    flat.copy_(at::sin(at::arange(flat.numel(), at::kDouble) * 12.9898 + i).mul(size));
  }
}

TEST_P(CudaTrainer, AdamWGivesTheBitsOfTheCpu) {
  const TensorTable table(model_configs::config_of(
      {.vocabulary = 500, .hidden = 40, .ffn = 72, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 10}));
  const std::vector<bool> all(table.tensors().size(), true);
  AdamWOptions options;
  options.weight_decay = 0.1;
  std::vector<std::vector<at::Tensor>> states;
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kCUDA, 0)}) {
    const ParameterBuffers weights(table, all, GetParam(), device), gradients(table, all, GetParam(), device);
    fill_waves(weights, 0.5);
    fill_waves(gradients, 0.01);
    AdamW optimizer(weights, options);
    for (int64_t t = 1; t <= 3; ++t) optimizer.update(gradients, 0.37, 1e-3, t);
    std::vector<at::Tensor>& state = states.emplace_back();
    for (int i = 0; i < weights.num_segments(); ++i) {
      state.push_back(weights.flat(i).cpu());
      for (const std::string_view name : kOptimizerParts) state.push_back(optimizer.part(name, i).cpu());
    }
  }
  for (size_t i = 0; i < states[0].size(); ++i) EXPECT_TRUE(at::equal(states[0][i], states[1][i])) << i;
}

TEST_P(CudaTrainer, AScaleOfTheCardUpdatesOrLeavesAll) {
  const TensorTable table(model_configs::config_of(
      {.vocabulary = 50, .hidden = 40, .ffn = 72, .layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 10}));
  const std::vector<bool> all(table.tensors().size(), true);
  const at::Device card(at::kCUDA, 0);
  for (const at::Device state : {card, at::Device(at::kCPU)}) {  // optimizer_offload
    const ParameterBuffers weights(table, all, GetParam(), card), told(table, all, GetParam(), card),
        gradients(table, all, GetParam(), card);
    fill_waves(weights, 0.5);
    fill_waves(told, 0.5);
    fill_waves(gradients, 0.01);
    AdamW optimizer(weights, shards_of(weights, {}), {}, {}, state),
        expected(told, shards_of(told, {}), {}, {}, state);
    const auto scale = [&](double value) { return at::full({}, value, at::dtype(at::kFloat).device(card)); };
    optimizer.update(shards_of(gradients, {}), scale(0.25), 1e-3, 1);
    expected.update(gradients, 0.25, 1e-3, 1);
    optimizer.update(shards_of(gradients, {}), scale(std::nan("")), 1e-3, 2);
    for (int i = 0; i < weights.num_segments(); ++i) {
      EXPECT_TRUE(at::equal(weights.flat(i), told.flat(i))) << i;
      for (const std::string_view name : kOptimizerParts)
        EXPECT_TRUE(at::equal(optimizer.part(name, i), expected.part(name, i))) << name << " " << i;
    }
  }
}

/// What an update is of.
struct Share {
  at::ScalarType weight, gradient;
  AdamWOptions options = {};
  std::vector<bool> trained = {};  ///< per tensor; empty: all
  World owner = {};
};

/// optimizer_offload: weights and gradients on a card, state on the host, against all on the CPU. `piece`
/// elements cross at a time.
void expect_the_bits_of_the_cpu(const Share& share, int64_t piece) {
  const TensorTable table(model_configs::config_of(
      {.vocabulary = 90, .hidden = 40, .ffn = 72, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 10}));
  const std::vector<bool> trained =
      share.trained.empty() ? std::vector<bool>(table.tensors().size(), true) : share.trained;
  const at::Device card(at::kCUDA, 0);
  const ParameterBuffers here(table, trained, share.weight, at::kCPU),
      there(table, trained, share.weight, card), gradients(table, trained, share.gradient, at::kCPU),
      gradients_there(table, trained, share.gradient, card);
  fill_waves(here, 0.5);
  fill_waves(there, 0.5);
  AdamWOptions in_pieces = share.options;
  in_pieces.host_piece = piece;
  AdamW expected(here, share.options, share.owner),
      found(there, shards_of(there, share.owner), in_pieces, share.owner, at::kCPU);
  for (int64_t t = 1; t <= 3; ++t) {
    fill_waves(gradients, 0.01 * static_cast<double>(t));
    fill_waves(gradients_there, 0.01 * static_cast<double>(t));
    expected.update(gradients, 0.37, 1e-3, t);
    found.update(gradients_there, 0.37, 1e-3, t);
    // The next step's work on the card, which is not to wait for the host.
    for (int i = 0; i < there.num_segments(); ++i) gradients_there.flat(i).zero_();
  }
  for (int i = 0; i < here.num_segments(); ++i) {
    EXPECT_TRUE(at::equal(there.flat(i).cpu(), here.flat(i))) << "segment " << i;
    for (const std::string_view name : kOptimizerParts)
      EXPECT_TRUE(at::equal(found.part(name, i), expected.part(name, i))) << name << " " << i;
  }
}

TEST_P(CudaTrainer, StateOnTheHostHasTheBitsOfTheCpu) {
  AdamWOptions options;
  options.weight_decay = 0.1;
  for (const int64_t piece : {int64_t{1024}, int64_t{3072}, kHostPiece}) {
    expect_the_bits_of_the_cpu({GetParam(), GetParam(), options}, piece);
    if (GetParam() != at::kBFloat16) continue;
    expect_the_bits_of_the_cpu({GetParam(), at::kFloat, options}, piece);
    for (const MasterWeights master : {MasterWeights::kSplit, MasterWeights::kNone}) {
      for (const OptimizerMoments moments : {OptimizerMoments::kBf16, OptimizerMoments::k8Bit}) {
        AdamWOptions small = options;
        small.format.master_weights = master;
        small.format.moments = moments;
        expect_the_bits_of_the_cpu({GetParam(), at::kBFloat16, small}, piece);
      }
    }
  }
}

TEST_P(CudaTrainer, StateOnTheHostOfPartsOfAModel) {
  const TensorTable table(model_configs::config_of(
      {.vocabulary = 90, .hidden = 40, .ffn = 72, .layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 10}));
  // The embedding and the first layer are frozen, and one tensor of the second; the last share cuts others.
  std::vector<bool> trained;
  for (const TensorInfo& tensor : table.tensors())
    trained.push_back(tensor.segment > 1 && tensor.role != TensorRole::kGate);
  for (const World& owner : {World{0, 1}, World{1, 3}, World{2, 3}}) {
    for (const int64_t piece : {int64_t{1024}, kHostPiece}) {
      expect_the_bits_of_the_cpu({GetParam(), at::kFloat, {}, trained, owner}, piece);
      expect_the_bits_of_the_cpu({GetParam(), at::kFloat, {}, {}, owner}, piece);
      expect_the_bits_of_the_cpu({at::kHalf, at::kFloat, {}, trained, owner}, piece);
    }
  }
}

TEST_P(CudaTrainer, AnUpdateThatFailsLeavesTheNextOneWhole) {
  const at::Device card(at::kCUDA, 0);
  const auto numbers = [&](double first) {
    return at::arange(6, at::dtype(at::kFloat).device(card)).add_(first).to(GetParam());
  };
  HostStaging staging(card, GetParam(), 2);
  const auto pieces_of = [](const at::Tensor& gradient, const at::Tensor& weights) {
    std::vector<HostStaging::Piece> pieces;
    for (int64_t i = 0; i < 6; i += 2) pieces.push_back({gradient.narrow(0, i, 2), weights.narrow(0, i, 2)});
    return pieces;
  };
  const at::Tensor weights = at::zeros({6}, at::dtype(GetParam()).device(card));
  const auto fails_at = [](size_t at) {
    return [at](size_t piece, const at::Tensor& gradient, const at::Tensor& result) {
      if (piece == at) throw std::runtime_error("update");
      result.copy_(gradient);
    };
  };
  EXPECT_THROW(staging.run(pieces_of(numbers(10), weights), fails_at(1)), std::runtime_error);
  EXPECT_EQ(weights.to(at::kFloat).sum().item<float>(), 10 + 11) << "the pieces before";
  staging.run(pieces_of(numbers(100), weights), fails_at(3));
  EXPECT_TRUE(at::equal(weights.cpu(), numbers(100).cpu()));
  EXPECT_THROW(staging.run(pieces_of(numbers(1).to(at::kDouble), weights), fails_at(3)), c10::Error);
}

TEST_P(CudaTrainer, NormAndSumOverRanks) {
  const at::Tensor values = at::sin(at::arange(100003, at::kDouble) * 12.9898).to(GetParam());
  const at::Tensor gradients[] = {values.cuda(), values.narrow(0, 1, 70000).cuda()};
  const double expected = values.to(at::kDouble).square().sum().item<double>() +
                          values.narrow(0, 1, 70000).to(at::kDouble).square().sum().item<double>();
  const double found = gradient_sum_of_squares(gradients);
  EXPECT_NEAR(found, expected, 1e-12 * expected);
  EXPECT_EQ(sum_of_squares(gradients).item<double>(), found);
  std::vector<at::Tensor> here, there;
  for (int i = 0; i < 20; ++i) {
    here.push_back(values.roll(i).contiguous());
    there.push_back(here.back().cuda());
  }
  const at::Tensor sum = at::ones({values.numel()}, at::kFloat), on_card = sum.cuda();
  sum_parts(here, sum, true);
  sum_parts(there, on_card, true);
  EXPECT_TRUE(at::equal(on_card.cpu(), sum));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaTrainer, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return std::string(at::toString(info.param)); });

}  // namespace
}  // namespace satune::trainer_test
