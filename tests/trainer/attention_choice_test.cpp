// Which attention kernel a run takes. What cards would answer is put in their place.
#include "trainer/attention_choice.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "data/files/error.h"
#include "model/ops/attention_cudnn.h"
#include "tests/model_configs.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/dry_run.h"

namespace satune::trainer_test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const at::Device kCard(at::kCUDA, 0);

ModelConfig grouped() {
  return model_configs::config_of(
      {.vocabulary = 50, .hidden = 64, .ffn = 96, .layers = 2, .heads = 8, .kv_heads = 2, .head_dim = 16});
}

/// By kernel, how far its results are off; one that is not there throws.
using Errors = std::map<AttentionKernel, double>;

ChosenAttention choose(AttnImplementation wanted, const at::Device& device, at::ScalarType type,
                       const Errors& errors, bool deterministic = false) {
  return choose_attention({wanted, deterministic, 512}, grouped(), type, device, [&](AttentionKernel kernel) {
    const auto found = errors.find(kernel);
    if (found == errors.end()) throw std::runtime_error("no such kernel here\nat some line");
    return found->second;
  });
}

TEST(AttentionChoice, TheFirstKernelOfACardThatAgreesIsTaken) {
  const Errors both = {{AttentionKernel::kCudnn, 1e-3}, {AttentionKernel::kFlash, 1e-3}};
  ChosenAttention chosen = choose(AttnImplementation::kAuto, kCard, at::kBFloat16, both);
  EXPECT_EQ(chosen.choice.kernel, AttentionKernel::kCudnn);
  EXPECT_EQ(chosen.choice.full_row, 512);
  EXPECT_EQ(chosen.name, "cudnn");
  EXPECT_TRUE(chosen.first);

  const double off[] = {0.5, std::nan("")};
  for (const double error : off) {
    chosen = choose(AttnImplementation::kAuto, kCard, at::kBFloat16,
                    {{AttentionKernel::kCudnn, error}, {AttentionKernel::kFlash, 1e-3}});
    EXPECT_EQ(chosen.choice.kernel, AttentionKernel::kFlash);
    EXPECT_FALSE(chosen.first);
    EXPECT_THAT(chosen.reason, AllOf(HasSubstr("cudnn: results"), HasSubstr("off the reference")));
  }
  chosen = choose(AttnImplementation::kAuto, kCard, at::kHalf, {});
  EXPECT_EQ(chosen.choice.kernel, AttentionKernel::kEager);
  EXPECT_EQ(chosen.reason, "cudnn: no such kernel here; flash: no such kernel here");
  const Errors small = {{AttentionKernel::kCudnn, 1e-6}, {AttentionKernel::kFlash, 1e-6}};
  EXPECT_EQ(choose(AttnImplementation::kAuto, kCard, at::kFloat, small).choice.kernel,
            AttentionKernel::kFlash)
      << "cuDNN has no fp32";
  EXPECT_EQ(choose(AttnImplementation::kAuto, at::kCPU, at::kFloat, {}).choice.kernel,
            AttentionKernel::kFlash);
}

TEST(AttentionChoice, ADeterministicRunHasAFixedOrder) {
  const Errors both = {{AttentionKernel::kCudnn, 1e-3}, {AttentionKernel::kFlash, 1e-3}};
  for (const AttnImplementation wanted : {AttnImplementation::kAuto, AttnImplementation::kFlash}) {
    EXPECT_TRUE(choose(wanted, kCard, at::kBFloat16, both, true).choice.in_fixed_order);
    EXPECT_FALSE(choose(wanted, kCard, at::kBFloat16, both, false).choice.in_fixed_order);
  }
  EXPECT_EQ(choose(AttnImplementation::kAuto, kCard, at::kBFloat16, both, true).name,
            "cudnn, backward flash");
  EXPECT_TRUE(wanted_attention({}).deterministic) << "as long as nobody asks for less";
}

TEST(AttentionChoice, AForcedKernelIsTakenOrRefused) {
  const Errors flash = {{AttentionKernel::kFlash, 1e-3}, {AttentionKernel::kCudnn, 0.1}};
  EXPECT_EQ(choose(AttnImplementation::kFlash, kCard, at::kBFloat16, flash).name, "flash");
  EXPECT_THAT(
      error_of<EnvironmentError>([&] { choose(AttnImplementation::kCudnn, kCard, at::kBFloat16, flash); }),
      AllOf(HasSubstr("attn_implementation"), HasSubstr("\"cudnn\" fails"), HasSubstr("1.0e-01")));
  EXPECT_THAT(error_of<BadInput>([&] { choose(AttnImplementation::kCudnn, at::kCPU, at::kFloat, flash); }),
              HasSubstr("\"cudnn\" on the CPU"));
  EXPECT_THAT(error_of<BadInput>([&] { choose(AttnImplementation::kCudnn, kCard, at::kFloat, flash); }),
              HasSubstr("precision"));
}

TEST(AttentionChoice, KernelsOfTheCpuPassTheirTrial) {
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (const AttnImplementation wanted : {AttnImplementation::kFlash, AttnImplementation::kEager}) {
      const ChosenAttention chosen = choose_attention({wanted, true, 512}, grouped(), type, at::kCPU);
      EXPECT_EQ(chosen.name, wanted == AttnImplementation::kFlash ? "flash" : "eager");
    }
    EXPECT_GT(attention_error(AttentionKernel::kFlash, true, grouped(), type, at::kCPU), 0)
        << "not compared with itself";
  }
}

class CardAttention : public ::testing::TestWithParam<AttnImplementation> {};

TEST_P(CardAttention, PassesItsTrial) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  for (const bool deterministic : {true, false}) {
    EXPECT_TRUE(choose_attention({GetParam(), deterministic, 512}, grouped(), at::kBFloat16, kCard).first);
    if (GetParam() == AttnImplementation::kCudnn) continue;
    EXPECT_TRUE(choose_attention({GetParam(), deterministic, 512}, grouped(), at::kFloat, kCard).first);
  }
}

TEST_P(CardAttention, InAFixedOrderRepeatsItsBits) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  // Many blocks of keys for each query, in rows and packed.
  const std::vector<int64_t> packed = {0, 700, 1300, 1301, 2048}, rows = {0, 1024, 2048};
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat}) {
    if (type == at::kFloat && GetParam() == AttnImplementation::kCudnn) continue;
    const AttentionChoice choice = choose_attention({GetParam(), true, 1024}, grouped(), type, kCard).choice;
    const at::Tensor qkv = at::sin(at::arange(int64_t{2048} * 12 * 16, at::kDouble) * 12.9898)
                               .view({2048, 12, 16})
                               .to(kCard, type);
    const at::Tensor q = qkv.narrow(1, 0, 8), k = qkv.narrow(1, 8, 2), v = qkv.narrow(1, 10, 2);
    for (const std::vector<int64_t>& starts : {packed, rows}) {
      const auto gradients = [&] {
        const AttentionOut out = attention_forward(q, k, v, starts, {choice});
        const at::Tensor d_qkv = at::empty_like(qkv);
        attention_backward(q, q, k, v, out, starts, d_qkv.narrow(1, 0, 8), d_qkv.narrow(1, 8, 2),
                           d_qkv.narrow(1, 10, 2));
        return d_qkv.cpu();
      };
      const at::Tensor first = gradients();
      for (int again = 0; again < 3; ++again) EXPECT_TRUE(at::equal(gradients(), first));
    }
  }
}

TEST(CardGraphs, AFewServeAllBatches) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  const AttentionChoice choice =
      choose_attention({AttnImplementation::kCudnn, false, 256}, grouped(), at::kBFloat16, kCard).choice;
  const auto pass = [&](const std::vector<int64_t>& starts) {
    const at::Tensor qkv = at::ones({starts.back(), 12, 16}, at::TensorOptions(kCard).dtype(at::kBFloat16));
    const at::Tensor q = qkv.narrow(1, 0, 8), k = qkv.narrow(1, 8, 2), v = qkv.narrow(1, 10, 2);
    const AttentionOut out = attention_forward(q, k, v, starts, {choice});
    const at::Tensor d_qkv = at::empty_like(qkv);
    attention_backward(out.out_NHD, q, k, v, out, starts, d_qkv.narrow(1, 0, 8), d_qkv.narrow(1, 8, 2),
                       d_qkv.narrow(1, 10, 2));
  };
  // Five to eight documents, of 65 to 128 tokens at most, some 500 in all.
  pass({0, 100, 180, 300, 400, 500});
  const size_t both = choice.cudnn->num_graphs();
  EXPECT_EQ(both, 2U);
  pass({0, 80, 200, 270, 350, 400, 405, 480, 490});
  pass({0, 128, 200, 300, 400, 470, 511});
  EXPECT_EQ(choice.cudnn->num_graphs(), both);
  pass({0, 300, 500});
  const size_t packed = choice.cudnn->num_graphs();
  EXPECT_EQ(packed, both + 2) << "longer ones";
  pass({0, 256, 512});
  EXPECT_EQ(choice.cudnn->num_graphs(), packed + 2) << "full rows";
}

INSTANTIATE_TEST_SUITE_P(Kernels, CardAttention,
                         ::testing::Values(AttnImplementation::kCudnn, AttnImplementation::kFlash,
                                           AttnImplementation::kEager),
                         [](const auto& info) {
                           return std::string(info.param == AttnImplementation::kCudnn   ? "Cudnn"
                                              : info.param == AttnImplementation::kFlash ? "Flash"
                                                                                         : "Eager");
                         });

TEST(AttentionChoice, ARunWithoutItsKernelEndsBeforeItMakesAnything) {
  const TinyRun tiny;
  EXPECT_THAT(error_of<BadInput>([&] { tiny.train("refused", {"attn_implementation=cudnn"}); }),
              HasSubstr("\"cudnn\" on the CPU"));
  EXPECT_FALSE(std::filesystem::exists(tiny.output("refused")));
  RunPlan plan(tiny.settings("refused", {"attn_implementation=cudnn"}));
  EXPECT_THAT(dry_run_report(plan), HasSubstr("WARNING     a run here would stop: attn_implementation"));
  RunPlan fine(tiny.settings("refused", {"attn_implementation=eager"}));
  EXPECT_THAT(dry_run_report(fine), ::testing::Not(HasSubstr("attn_implementation")));
}

TEST(AttentionChoice, ARunTakesTheKernelOfItsSettings) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train("flash", {"attn_implementation=flash", "max_steps=3"}), kExitOk);
  ASSERT_EQ(tiny.train("auto", {"max_steps=3"}), kExitOk);
  ASSERT_EQ(tiny.train("eager", {"attn_implementation=eager", "max_steps=3"}), kExitOk);
  const auto flash = repeatable_rows(tiny.output("flash"));
  EXPECT_EQ(repeatable_rows(tiny.output("auto")), flash);
  const std::vector<Json> a = metric_rows(tiny.output("flash")), b = metric_rows(tiny.output("eager"));
  ASSERT_EQ(a.size(), 3U);
  ASSERT_EQ(b.size(), 3U);
  EXPECT_NE(repeatable_rows(tiny.output("eager")), flash) << "the last bits differ";
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_NEAR(b[i].at("loss").get<double>() / a[i].at("loss").get<double>(), 1, 1e-5);
}

}  // namespace
}  // namespace satune::trainer_test
