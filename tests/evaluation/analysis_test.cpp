#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/batches.h"
#include "data/random.h"
#include "evaluation/analyze_model.h"
#include "evaluation/device_batch.h"
#include "evaluation/head_assignment.h"
#include "evaluation/records.h"
#include "model/ops/attention.h"
#include "tests/evaluation/fixtures.h"

namespace satune {
namespace {

AnalysisDocuments some_documents() {
  AnalysisDocuments documents;
  for (const int length : {9, 2, 17, 30}) {
    EncodedSample sample;
    for (int i = 0; i < length; ++i) sample.tokens.push_back(3 + (i * i * 7 + length) % 250);
    sample.prompt_length = length / 3;
    documents.samples.push_back(std::move(sample));
  }
  return documents;
}

TEST(HeadAssignment, IsTheBestOfAllPermutations) {
  RandomStream random(5, "assignment");
  for (int64_t n = 1; n <= 6; ++n)
    for (int round = 0; round < 20; ++round) {
      std::vector<double> values(n * n);
      // Few different values, so that ties occur.
      for (double& value : values) value = static_cast<double>(random.below(round % 2 == 0 ? 4 : 1000)) - 2;
      const auto total = [&](const std::vector<int64_t>& map) {
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += values[i * n + map[i]];
        return sum;
      };
      std::vector<int64_t> order(n);
      std::iota(order.begin(), order.end(), 0);
      double best = total(order);
      while (std::next_permutation(order.begin(), order.end())) best = std::max(best, total(order));
      std::vector<int64_t> found = best_assignment(values, n);
      EXPECT_NEAR(total(found), best, 1e-9) << "n = " << n;
      std::sort(found.begin(), found.end());
      std::iota(order.begin(), order.end(), 0);
      EXPECT_EQ(found, order);
    }
}

TEST(AttentionSimilarity, BlocksOfRowsAddUpToWholeMatrices) {
  const int64_t L = 3, N = 23, H = 4;
  std::vector<at::Tensor> q, k;
  at::Tensor flat_PT = at::empty({L * H, N * N}, at::kDouble);
  for (int64_t layer = 0; layer < L; ++layer) {
    q.push_back(at::randn({N, H, 8}, at::kDouble));
    k.push_back(at::randn({N, 2, 8}, at::kDouble));
    flat_PT.narrow(0, layer * H, H).copy_(attention_probabilities(q[layer], k[layer], true).view({H, N * N}));
  }
  const at::Tensor unit = flat_PT / flat_PT.norm(2, 1, true);
  const at::Tensor expected = at::matmul(unit, unit.t());
  for (const int64_t rows : {1, 4, 23, 100}) {
    SimilaritySums sums;
    add_similarity(sums, q, k, rows * L * H * N * 8);
    EXPECT_LT((sums.cosine_PP - expected).abs().max().item<double>(), 1e-12) << rows;
  }
}

TEST(Isotropy, ItsEndsAreOneDirectionAndAllAlike) {
  // Rows along one direction; an orthogonal cross of n directions; rows that do not vary.
  const at::Tensor line = at::arange(7, at::kDouble).unsqueeze(1) * at::ones({1, 4}, at::kDouble);
  EXPECT_NEAR(weighted_cumulative_variance(line.unsqueeze(0))[0].item<double>(), 1, 1e-12);
  const at::Tensor eye = at::eye(5, at::kDouble), cross = at::cat({eye, -eye});
  EXPECT_NEAR(weighted_cumulative_variance(cross.unsqueeze(0))[0].item<double>(), (1 + 1.0 / 5) / 2, 1e-12);
  EXPECT_TRUE(std::isnan(weighted_cumulative_variance(at::ones({1, 4, 3}))[0].item<double>()));
  // More columns than rows goes by the rows' Gram matrix.
  const at::Tensor wide = at::randn({1, 4, 9}, at::kDouble), padded = at::cat({wide, wide, wide}, 1);
  EXPECT_NEAR(weighted_cumulative_variance(wide)[0].item<double>(),
              weighted_cumulative_variance(padded)[0].item<double>(), 1e-12);
}

TEST(Isotropy, HeadsInPiecesAreTheSame) {
  const at::Tensor q = at::randn({15, 4, 8}, at::kDouble), k = at::randn({15, 2, 8}, at::kDouble),
                   x = at::randn({15, 6}, at::kDouble);
  IsotropySums one, all;
  add_isotropy(one, {q}, {k}, {x, x}, 1);
  add_isotropy(all, {q}, {k}, {x, x});
  EXPECT_LT((one.attention_LH - all.attention_LH).abs().max().item<double>(), 1e-12);
  EXPECT_EQ(all.attention_LH.size(1), 4);
  add_isotropy(all, {q.narrow(0, 0, 1)}, {k.narrow(0, 0, 1)}, {x.narrow(0, 0, 1), x.narrow(0, 0, 1)});
  EXPECT_EQ(all.documents, 1);  // one token has no variance
}

TEST(PlanProbe, LossesAreThoseOfAModelBuiltWithThePlan) {
  const AnalysisDocuments documents = some_documents();
  Batch batch;
  for (const EncodedSample& sample : documents.samples)
    append_document(batch, sample.tokens, sample.prompt_length);
  const DeviceBatch on_device = to_device(batch, at::kCPU);
  Llama dense = byte_model("", at::kDouble);
  PlanProbe probe(dense);
  probe.start(on_device);
  EXPECT_LT((probe.token_losses() - dense.token_losses(on_device)).abs().max().item<double>(), 1e-12);
  for (const char* layers : {"1", "3", "2-3", "1-3", "1,3"}) {
    Llama shared = byte_model(layers, at::kDouble);
    for (size_t i = 0; i < shared.table().tensors().size(); ++i) {
      const std::string& name = shared.table().tensors()[i].name;
      shared.weights().tensor(i).copy_(dense.weights().tensor(name));
    }
    const SharingPlan& plan = shared.config().sharing;
    const at::Tensor expected = shared.token_losses(on_device);
    EXPECT_LT((probe.token_losses(plan) - expected).abs().max().item<double>(), 1e-12) << layers;
    // The identity permutation takes the other way through the heads and changes nothing.
    const std::vector<HeadMap> same(4, HeadMap{0, 1, 2, 3});
    EXPECT_LT((probe.token_losses(plan, same) - expected).abs().max().item<double>(), 1e-12) << layers;
    const std::vector<HeadMap> other(4, HeadMap{3, 0, 1, 2});
    EXPECT_GT((probe.token_losses(plan, other) - expected).abs().max().item<double>(), 1e-6) << layers;
    // A model that shares already shows its anchor's queries in every layer of the span.
    PlanProbe own(shared);
    own.start(on_device);
    EXPECT_LT((own.token_losses() - expected).abs().max().item<double>(), 1e-12) << layers;
    for (int layer = 0; layer < 4; ++layer)
      EXPECT_TRUE(own.traces()[layer].q_NHD.equal(own.traces()[plan.source(layer)].q_NHD));
  }
}

TEST(LayerAnalysis, SharesAddUp) {
  const Llama model = byte_model();
  const AnalysisDocuments documents = some_documents();
  const LayerSums whole = measure_layers(model, documents, 0, 1);
  const std::vector<LossQuery> queries = {{SharingPlan::parse("2-3", AnchorRule::kBefore, 4), {}}};
  const SpanSums spans = measure_spans(model, documents, queries, 0, 1);
  EXPECT_EQ(whole.similarity.documents, 4);
  EXPECT_EQ(spans.dense.items, 4);
  for (const int64_t shares : {2, 3, 7}) {
    LayerSums layers;
    SpanSums sums;
    for (int64_t share = 0; share < shares; ++share) {
      layers += measure_layers(model, documents, share, shares);
      sums += measure_spans(model, documents, queries, share, shares);
    }
    EXPECT_EQ(layers.similarity.documents, 4);
    EXPECT_LT((layers.similarity.cosine_PP - whole.similarity.cosine_PP).abs().max().item<double>(), 1e-9);
    EXPECT_LT((layers.isotropy.hidden_states - whole.isotropy.hidden_states).abs().max().item<double>(),
              1e-9);
    EXPECT_NEAR(sums.plans[0].increase.ratio(), spans.plans[0].increase.ratio(), 1e-6);
    EXPECT_NEAR(sums.dense.ratio() + sums.plans[0].increase.ratio(), sums.plans[0].loss.ratio(), 1e-9);
  }
}

TEST(SpanSuggestions, PlansAreTheLeastSumsOfDisjointSpans) {
  EXPECT_EQ(candidate_spans(4, 2), (std::vector<Span>{{1, 1}, {1, 2}, {2, 2}, {2, 3}, {3, 3}}));
  EXPECT_EQ(spans_text({{1, 1}, {3, 5}}), "1,3-5");
  // Every set of spans with a layer between two, against the search.
  RandomStream random(9, "spans");
  for (int round = 0; round < 20; ++round) {
    const int layers = 6;
    std::vector<MeasuredSpan> measured;
    for (const Span& span : candidate_spans(layers, 3))
      measured.push_back({span, static_cast<double>(random.below(1000)) / 1000 - 0.1});
    std::vector<double> best(layers, 1e9);
    for (size_t set = 0; set < size_t{1} << measured.size(); ++set) {
      double sum = 0;
      int shared = 0, last = -1;
      bool apart = true;
      for (size_t i = 0; i < measured.size() && apart; ++i) {
        if ((set >> i & 1) == 0) continue;
        apart = measured[i].span.first - 1 > last;
        last = measured[i].span.last;
        shared += measured[i].span.length();
        sum += measured[i].increase;
      }
      if (apart && shared > 0 && shared < layers) best[shared] = std::min(best[shared], sum);
    }
    for (const PredictedPlan& plan : predict_plans(layers, measured)) {
      const int shared = SharingPlan::parse(spans_text(plan.spans), AnchorRule::kBefore, layers).num_shared();
      EXPECT_NEAR(plan.predicted_increase, best[shared], 1e-12) << shared;
      best[shared] = 1e9;
    }
    for (int shared = 1; shared < layers; ++shared) EXPECT_EQ(best[shared], 1e9) << shared << " is missing";
  }
}

}  // namespace
}  // namespace satune
