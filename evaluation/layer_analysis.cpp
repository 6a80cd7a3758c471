#include "evaluation/layer_analysis.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "data/batches.h"
#include "data/files/error.h"
#include "evaluation/device_batch.h"
#include "evaluation/head_assignment.h"
#include "evaluation/records.h"

namespace satune {
namespace {

/// The first `wanted` tokens of a text, or all. Of a long one only a beginning is encoded, which ends between
/// two words far behind the last token taken: what follows a word does not change tokens before it.
std::vector<int32_t> first_tokens(const std::string& text, const Tokenizer& tokenizer, int64_t wanted) {
  constexpr int64_t kMargin = 64;  // tokens before the cut that are encoded and thrown away
  constexpr size_t kBytesPerToken = 8;
  for (size_t bytes = static_cast<size_t>(wanted + kMargin) * kBytesPerToken;; bytes *= 2) {
    const size_t end = bytes < text.size() ? text.find_first_of(" \n", bytes) : std::string::npos;
    std::vector<int32_t> tokens = encode_raw_prompt(text.substr(0, end), tokenizer);
    if (end == std::string::npos) return tokens;
    if (static_cast<int64_t>(tokens.size()) < wanted + kMargin) continue;
    tokens.resize(static_cast<size_t>(wanted));
    return tokens;
  }
}

AnalysisDocuments read_text_pieces(const std::filesystem::path& data, const Tokenizer& tokenizer,
                                   int64_t max_length, int64_t max_documents) {
  AnalysisDocuments result;
  result.plain_text = true;
  for (const TextDocument& document : read_plain_text(data)) {
    const int64_t missing = max_documents - static_cast<int64_t>(result.samples.size());
    if (missing == 0) break;
    // Beyond what any text holds, a product that would overflow stands for all of it.
    const int64_t most = static_cast<int64_t>(document.text.size()) + 2;
    const int64_t wanted = missing > most / max_length ? most : missing * max_length;
    const std::vector<int32_t> tokens = first_tokens(document.text, tokenizer, wanted);
    for (size_t begin = 0; begin + 1 < tokens.size(); begin += max_length) {
      if (static_cast<int64_t>(result.samples.size()) >= max_documents) return result;
      const size_t end = std::min(tokens.size(), begin + static_cast<size_t>(max_length));
      EncodedSample piece;
      piece.tokens.assign(tokens.begin() + static_cast<int64_t>(begin),
                          tokens.begin() + static_cast<int64_t>(end));
      result.samples.push_back(std::move(piece));
    }
  }
  if (result.samples.empty())
    throw bad_input(data.string(), "no token to predict", "a text of at least two tokens");
  return result;
}

std::vector<double> losses_of_documents(const at::Tensor& losses_N, const std::vector<int64_t>& starts) {
  const at::Tensor values_N = losses_N.to(at::kCPU, at::kDouble).contiguous();
  const double* loss = values_N.const_data_ptr<double>();
  std::vector<double> sums(starts.size() - 1);
  for (size_t d = 0; d < sums.size(); ++d)
    for (int64_t i = starts[d]; i < starts[d + 1]; ++i) sums[d] += loss[i];
  return sums;
}

/// The documents of this share as forward passes of about 2048 tokens: enough to fill a CPU's caches and
/// cores.
std::vector<std::vector<int64_t>> passes(const AnalysisDocuments& documents, int64_t share, int64_t shares) {
  constexpr int64_t kTokens = 2048;
  std::vector<std::vector<int64_t>> result;
  int64_t tokens = 0;
  for (int64_t i = share; i < static_cast<int64_t>(documents.samples.size()); i += shares) {
    const auto length = static_cast<int64_t>(documents.samples[i].tokens.size());
    if (result.empty() || tokens + length > kTokens) {
      result.emplace_back();
      tokens = 0;
    }
    result.back().push_back(i);
    tokens += length;
  }
  return result;
}

/// A batch, and how many targets each of its documents has.
struct CountedBatch {
  Batch batch;
  std::vector<double> targets;
};

CountedBatch make_counted_batch(const AnalysisDocuments& documents, const std::vector<int64_t>& items) {
  CountedBatch result;
  for (const int64_t item : items) {
    const int64_t before = result.batch.target_count;
    append_document(result.batch, documents.samples[item].tokens, documents.samples[item].prompt_length);
    result.targets.push_back(static_cast<double>(result.batch.target_count - before));
  }
  return result;
}

/// Index of the first hidden states that hold what is not finite.
std::optional<int> first_broken(const std::vector<at::Tensor>& hidden_NC) {
  for (size_t i = 0; i < hidden_NC.size(); ++i)
    if (!hidden_NC[i].isfinite().all().item<bool>()) return static_cast<int>(i);
  return std::nullopt;
}

}  // namespace

int64_t AnalysisDocuments::tokens() const {
  int64_t sum = 0;
  for (const EncodedSample& sample : samples) sum += static_cast<int64_t>(sample.tokens.size());
  return sum;
}

AnalysisDocuments read_analysis_documents(const std::filesystem::path& data, const Tokenizer& tokenizer,
                                          const PromptTemplate* prompt_template, int64_t max_length,
                                          int64_t max_documents) {
  if (prompt_template == nullptr) return read_text_pieces(data, tokenizer, max_length, max_documents);
  TaskOptions options;
  options.max_length = max_length;
  options.max_records = max_documents;
  EvaluationRecords records = read_evaluation_records(data, options, tokenizer, *prompt_template);
  AnalysisDocuments result;
  result.samples = std::move(records.samples);
  result.over_length = records.over_length;
  return result;
}

LayerSums& LayerSums::operator+=(const LayerSums& other) {
  similarity += other.similarity;
  isotropy += other.isotropy;
  if (!broken) broken = other.broken;
  return *this;
}

LayerSums measure_layers(const Llama& model, const AnalysisDocuments& documents, int64_t share,
                         int64_t shares, const WorkDone& done) {
  LayerSums sums;
  PlanProbe probe(model);
  const auto count = static_cast<int64_t>(documents.samples.size());
  for (int64_t i = share; i < count; i += shares) {
    probe.start(to_device(make_counted_batch(documents, {i}).batch, model.weights().device()));
    const LayerTraces& traces = probe.traces();
    if (const std::optional<int> layer = first_broken(traces.hidden_NC)) {
      sums.broken = NonFinite{i, *layer - 1};
      return sums;
    }
    add_similarity(sums.similarity, traces.q_NHD, traces.k_NKD);
    add_isotropy(sums.isotropy, traces.q_NHD, traces.k_NKD, traces.hidden_NC);
    if (done) done(i / shares + 1, (count - share + shares - 1) / shares);
  }
  return sums;
}

std::vector<HeadAssignment> assign_heads(const at::Tensor& cosines_LHLH) {
  const auto layers = static_cast<int>(cosines_LHLH.size(0));
  const int64_t H = cosines_LHLH.size(1);
  std::vector<HeadAssignment> result;
  for (int layer = 1; layer < layers; ++layer) {
    for (int anchor = 0; anchor < layer; ++anchor) {
      const at::Tensor cosines_HH = cosines_LHLH.select(2, anchor).select(0, layer).contiguous();
      const std::span values(cosines_HH.const_data_ptr<double>(), static_cast<size_t>(H * H));
      HeadAssignment assignment{anchor, layer, best_assignment(values, H)};
      for (int64_t h = 0; h < H; ++h) {
        assignment.similarity += values[h * H + h] / static_cast<double>(H);
        assignment.assigned_similarity += values[h * H + assignment.heads[h]] / static_cast<double>(H);
      }
      result.push_back(std::move(assignment));
    }
  }
  return result;
}

std::vector<HeadMap> head_maps(const SharingPlan& plan, const std::vector<HeadAssignment>& assignments) {
  std::vector<HeadMap> maps(static_cast<size_t>(plan.num_layers()));
  for (const HeadAssignment& assignment : assignments)
    if (plan.is_shared(assignment.layer) && plan.source(assignment.layer) == assignment.anchor)
      maps[assignment.layer] = assignment.heads;
  return maps;
}

PlanLoss& PlanLoss::operator+=(const PlanLoss& other) {
  loss += other.loss;
  increase += other.increase;
  return *this;
}

SpanSums& SpanSums::operator+=(const SpanSums& other) {
  dense += other.dense;
  plans.resize(std::max(plans.size(), other.plans.size()));
  for (size_t i = 0; i < other.plans.size(); ++i) plans[i] += other.plans[i];
  return *this;
}

SpanSums measure_spans(const Llama& model, const AnalysisDocuments& documents,
                       const std::vector<LossQuery>& queries, int64_t share, int64_t shares,
                       const WorkDone& done) {
  SpanSums sums;
  sums.plans.resize(queries.size());
  PlanProbe probe(model);
  const std::vector<std::vector<int64_t>> all_passes = passes(documents, share, shares);
  const auto total = static_cast<int64_t>(all_passes.size() * queries.size());
  int64_t finished = 0;
  for (const std::vector<int64_t>& items : all_passes) {
    const auto [batch, targets] = make_counted_batch(documents, items);
    if (batch.target_count == 0) continue;
    probe.start(to_device(batch, model.weights().device()));
    const std::vector<int64_t>& starts = probe.batch().document_starts;
    const std::vector<double> dense = losses_of_documents(probe.token_losses(), starts);
    for (size_t d = 0; d < dense.size(); ++d)
      if (targets[d] > 0) sums.dense.add(dense[d], targets[d]);
    for (size_t i = 0; i < queries.size(); ++i) {
      const std::vector<double> shared =
          losses_of_documents(probe.token_losses(queries[i].plan, queries[i].heads), starts);
      for (size_t d = 0; d < dense.size(); ++d) {
        if (targets[d] == 0) continue;
        sums.plans[i].loss.add(shared[d], targets[d]);
        sums.plans[i].increase.add(shared[d] - dense[d], targets[d]);
      }
      if (done) done(++finished, total);
    }
  }
  return sums;
}

}  // namespace satune
