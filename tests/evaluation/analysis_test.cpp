#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "data/batches.h"
#include "data/files/atomic_file.h"
#include "data/files/error.h"
#include "data/random.h"
#include "evaluation/analyze_model.h"
#include "evaluation/device_batch.h"
#include "evaluation/head_assignment.h"
#include "evaluation/records.h"
#include "model/ops/attention.h"
#include "tests/evaluation/fixtures.h"
#include "tests/temporary_directory.h"

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
  EXPECT_LT((one.attention_LH.mean() - all.attention_LH.mean()).abs().max().item<double>(), 1e-12);
  EXPECT_EQ(all.attention_LH.sum.size(1), 4);
  add_isotropy(all, {q.narrow(0, 0, 1)}, {k.narrow(0, 0, 1)}, {x.narrow(0, 0, 1), x.narrow(0, 0, 1)});
  EXPECT_EQ(all.documents, 1);  // one token has no variance
}

TEST(Isotropy, ScaleDoesNotMatter) {
  // Squares of squares of 1e-20 are nothing in fp32, those of 1e20 are infinite.
  const at::Tensor x = at::randn({1, 12, 5});
  const double expected = weighted_cumulative_variance(x)[0].item<double>();
  for (const double scale : {1e-38, 1e-20, 1e-6, 1e20, 1e36})
    EXPECT_NEAR(weighted_cumulative_variance(x * scale)[0].item<double>(), expected, 1e-3 * expected)
        << scale;
  // Small columns beside a large one that stands still but for the rounding of its mean.
  const at::Tensor still = at::cat({x * 1e-6, at::full({1, 12, 1}, 1.0F / 3)}, 2);
  EXPECT_NEAR(weighted_cumulative_variance(still)[0].item<double>(), expected, 1e-3 * expected);
}

TEST(Isotropy, ADocumentWithoutVarianceCountsNothing) {
  const at::Tensor q = at::randn({9, 2, 4}, at::kDouble), k = at::randn({9, 2, 4}, at::kDouble),
                   x = at::randn({9, 6}, at::kDouble), flat = at::ones({9, 6}, at::kDouble);
  IsotropySums one, both, none;
  add_isotropy(one, {q}, {k}, {x, x});
  add_isotropy(both, {q}, {k}, {x, x});
  add_isotropy(both, {q}, {k}, {x, flat});
  EXPECT_EQ(both.documents, 2);
  EXPECT_TRUE(both.hidden_states.mean().allclose(one.hidden_states.mean()));
  EXPECT_TRUE(both.hidden_states.count.equal(at::tensor({2.0, 1.0}, at::kDouble)));
  add_isotropy(none, {q}, {k}, {x, flat});
  EXPECT_TRUE(std::isnan(none.hidden_states.mean()[1].item<double>()));
  EXPECT_FALSE(std::isnan(none.hidden_states.mean()[0].item<double>()));
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
      EXPECT_TRUE(own.traces().q_NHD[layer].equal(own.traces().q_NHD[plan.source(layer)]));
    EXPECT_EQ(own.traces().hidden_NC.size(), 5U);
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
    EXPECT_LT((layers.isotropy.hidden_states.mean() - whole.isotropy.hidden_states.mean())
                  .abs()
                  .max()
                  .item<double>(),
              1e-9);
    EXPECT_NEAR(sums.plans[0].increase.ratio(), spans.plans[0].increase.ratio(), 1e-6);
    EXPECT_NEAR(sums.dense.ratio() + sums.plans[0].increase.ratio(), sums.plans[0].loss.ratio(), 1e-9);
  }
}

TEST(LayerAnalysis, LossesOfSeveralPassesAreThoseOfSingleDocuments) {
  // 11 documents of 150 to 250 tokens fill one forward pass and begin another.
  AnalysisDocuments documents;
  for (int d = 0; d < 11; ++d) {
    EncodedSample sample;
    for (int i = 0; i < 150 + 10 * d; ++i) sample.tokens.push_back(3 + (i * i + 31 * d * i + d) % 250);
    sample.prompt_length = 5 * d;
    documents.samples.push_back(std::move(sample));
  }
  ASSERT_GT(documents.tokens(), 2048);
  ASSERT_LT(documents.tokens(), 4096);
  const Llama model = byte_model();
  const std::vector<LossQuery> queries = {{SharingPlan::parse("1-2", AnchorRule::kBefore, 4), {}},
                                          {SharingPlan::parse("3", AnchorRule::kBefore, 4), {}}};
  int64_t steps = 0, planned = 0;
  const SpanSums sums = measure_spans(model, documents, queries, 0, 1, [&](int64_t done, int64_t total) {
    EXPECT_EQ(done, ++steps);
    planned = total;
  });
  EXPECT_EQ(steps, 4);  // two passes of two queries
  EXPECT_EQ(planned, 4);
  SpanSums single;
  for (const EncodedSample& sample : documents.samples)
    single += measure_spans(model, {{sample}, 0, false}, queries, 0, 1);
  EXPECT_EQ(sums.dense.items, 11);
  EXPECT_EQ(sums.dense.weight, single.dense.weight);
  EXPECT_NEAR(sums.dense.ratio(), single.dense.ratio(), 1e-5);
  for (size_t i = 0; i < queries.size(); ++i) {
    EXPECT_NEAR(sums.plans[i].loss.ratio(), single.plans[i].loss.ratio(), 1e-5);
    EXPECT_NEAR(sums.plans[i].increase.ratio(), single.plans[i].increase.ratio(), 1e-5);
    EXPECT_GT(std::abs(sums.plans[i].increase.ratio()), 1e-4);
  }
}

TEST(LayerAnalysis, NumbersThatAreNotFiniteAreRefused) {
  const AnalysisDocuments documents = some_documents();
  const auto message = [&](const Llama& model) -> std::string {
    try {
      analyze_model("broken", model, documents, {});
    } catch (const BadInput& error) {
      return error.what();
    }
    return "";
  };
  Llama inside = byte_model();
  inside.weights().tensor("model.layers.2.mlp.down_proj.weight").fill_(std::nan(""));
  EXPECT_THAT(message(inside), testing::HasSubstr("broken: found hidden states of document 0"));
  EXPECT_THAT(message(inside), testing::HasSubstr("after layer 2"));
  // Every layer is sound and the loss is not.
  Llama loss = byte_model();
  loss.weights().tensor("model.norm.weight").fill_(std::nan(""));
  EXPECT_THAT(message(loss), testing::HasSubstr("broken: found a loss that is not finite"));
}

TEST(LayerAnalysis, LayersThatCannotBeSharedAreRefusedByTheConfigAlone) {
  const ModelConfig config = byte_model().config();
  AnalysisOptions options;
  for (const int layers : {1, 2, 3}) {
    options.layers = layers;
    EXPECT_NO_THROW(check_analysis_options(options, config));
  }
  options.layers = 4;
  EXPECT_THROW(check_analysis_options(options, config), BadInput);
  options.layers = 3;
  options.max_span = 1;
  EXPECT_THROW(check_analysis_options(options, config), BadInput);
}

/// Counts what it is given to encode.
class CountingTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    bytes += text.size();
    return bytes_.encode(text);
  }
  std::string decode(std::span<const int32_t> ids, bool skip) const override {
    return bytes_.decode(ids, skip);
  }
  int32_t vocab_size() const override { return bytes_.vocab_size(); }
  std::optional<int32_t> bos_id() const override { return bytes_.bos_id(); }
  std::optional<int32_t> eos_id() const override { return bytes_.eos_id(); }
  bool adds_bos() const override { return bytes_.adds_bos(); }
  std::optional<int32_t> special_id(std::string_view text) const override { return bytes_.special_id(text); }
  std::string token_text(int32_t id) const override { return bytes_.token_text(id); }
  std::string_view kind() const override { return bytes_.kind(); }
  std::string fingerprint() const override { return bytes_.fingerprint(); }

  mutable size_t bytes = 0;

 private:
  ByteTokenizer bytes_;
};

TEST(AnalysisDocuments, OfALongTextOnlyTheBeginningIsEncoded) {
  const TemporaryDirectory folder;
  std::string text;
  for (int i = 0; text.size() < 200000; ++i) text += std::to_string(i) + (i % 9 == 0 ? "\n" : " ");
  write_file_atomic(folder.path() / "long.txt", text);
  const CountingTokenizer tokenizer;
  const AnalysisDocuments few =
      read_analysis_documents(folder.path() / "long.txt", tokenizer, nullptr, 16, 3);
  EXPECT_LT(tokenizer.bytes, 2000U);
  const AnalysisDocuments all =
      read_analysis_documents(folder.path() / "long.txt", tokenizer, nullptr, 16, 1 << 20);
  EXPECT_GT(all.tokens(), static_cast<int64_t>(text.size()) - 20);
  ASSERT_EQ(few.samples.size(), 3U);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(few.samples[i].tokens, all.samples[i].tokens);
}

TEST(AnalysisFigures, EachRunHasItsOwnCurvesOverItsSteps) {
  AnalysisReport report;
  const Llama model = byte_model();
  for (const auto& [name, step] :
       {std::pair("first", 1), {"first", 2}, {"second", 1}, {"second", 3}, {"alone", 1}}) {
    ModelAnalysis analysis;
    analysis.name = name;
    analysis.step = step;
    analysis.config = model.config();
    analysis.cosines_LHLH = at::rand({4, 4, 4, 4}, at::kDouble);
    report.models.push_back(std::move(analysis));
  }
  const auto steps_of = [&] {
    const std::vector<NamedFigure> figures = analysis_figures(report);
    EXPECT_EQ(figures.back().file, "steps");
    return to_svg(figures.back().drawing);
  };
  const std::string svg = steps_of();
  for (const char* curve :
       {">first: neighbours<", ">first: all pairs<", ">second: neighbours<", ">second: all pairs<"})
    EXPECT_THAT(svg, testing::HasSubstr(curve));
  EXPECT_THAT(svg, testing::Not(testing::HasSubstr("alone")));  // one snapshot makes no curve
  report.models.resize(2);
  EXPECT_THAT(steps_of(), testing::HasSubstr(">neighbours<"));
  report.models.resize(1);
  EXPECT_NE(analysis_figures(report).back().file, "steps");
}

TEST(AnalysisFigures, AModelOfOneLayerHasNothingToCompare) {
  ModelConfig config = model_configs::config_of(
      {.vocabulary = 259, .hidden = 32, .ffn = 48, .layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 8});
  config.max_position_embeddings = 256;
  config.sharing = SharingPlan(1);
  Llama model(config, {}, at::kFloat, at::kCPU);
  initialise_weights(model.weights(), 0.2, 11);
  const AnalysisDocuments documents = some_documents();
  AnalysisReport report;
  report.settings = Json::object();
  report.models.push_back(analyze_model("single", model, documents, {}));
  EXPECT_THAT(report.models[0].note, testing::HasSubstr("one layer"));
  const auto names = [&] {
    std::vector<std::string> files;
    for (const NamedFigure& figure : analysis_figures(report)) files.push_back(figure.file);
    return files;
  };
  EXPECT_EQ(names(), (std::vector<std::string>{"isotropy", "hidden-states"}));
  const Json json = analysis_json(report)["models"][0];
  EXPECT_TRUE(json["head_assignments"].empty());
  EXPECT_TRUE(json["spans"].is_null());
  const std::string page = analysis_page(report, analysis_figures(report));
  EXPECT_THAT(page, testing::HasSubstr("one layer"));
  EXPECT_THAT(page, testing::Not(testing::HasSubstr("Neighbouring layers:")));
  // Beside one of several layers the others' figures stay, without a curve of its own.
  report.models.push_back(analyze_model("deep", byte_model(), documents, {.max_span = 0, .layers = {}}));
  EXPECT_THAT(names(), testing::IsSupersetOf({"model-1-isotropy", "model-2-similarity", "neighbours"}));
  EXPECT_THAT(names(), testing::Not(testing::Contains("model-1-similarity")));
  // Snapshots of a run of one layer have no steps to show.
  report.models.pop_back();
  report.models.push_back(report.models[0]);
  report.models[0].step = 1;
  report.models[1].step = 2;
  EXPECT_THAT(names(), testing::Not(testing::Contains("steps")));
  EXPECT_THAT(analysis_page(report, analysis_figures(report)),
              testing::Not(testing::HasSubstr("All models")));
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
