// What `satune analyze` measures on documents: similarity and isotropy of every layer, then the loss of
// candidate spans. Each takes (share, shares) of the documents and returns sums that add up to those of one
// share of 1.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/prompt_template.h"
#include "data/tokenizer.h"
#include "evaluation/attention_similarity.h"
#include "evaluation/isotropy.h"
#include "evaluation/plan_probe.h"
#include "evaluation/sums.h"
#include "model/llama.h"

namespace satune {

struct AnalysisDocuments {
  std::vector<EncodedSample> samples;  ///< in file order; of Alpaca records the response is the target
  int64_t over_length = 0;             ///< records longer than max_length, left out
  bool plain_text = false;

  int64_t tokens() const;
};

/// The first `max_documents` that fit. Alpaca JSON or JSONL goes through the template; of plain text every
/// token is a target, and longer documents are cut into pieces of `max_length` tokens, each seen alone
/// (pieces of one token are dropped). `prompt_template` may be nullptr for plain text. Throws BadInput for
/// data that cannot be read or holds nothing to measure.
AnalysisDocuments read_analysis_documents(const std::filesystem::path& data, const Tokenizer& tokenizer,
                                          const PromptTemplate* prompt_template, int64_t max_length,
                                          int64_t max_documents);

/// Called by the analysing thread as the work goes on: steps done so far, of how many in all.
using WorkDone = std::function<void(int64_t done, int64_t total)>;

/// A document (index of AnalysisDocuments::samples) after which a layer's output, or with -1 the embedding,
/// is not finite.
struct NonFinite {
  int64_t document = 0;
  int layer = 0;
};

struct LayerSums {
  SimilaritySums similarity;
  IsotropySums isotropy;
  std::optional<NonFinite> broken;  ///< the first one; nothing is summed from there on
  LayerSums& operator+=(const LayerSums& other);
};

/// One document at a time; see kSimilarityBlockBytes and kIsotropyBlockBytes for what exists at once, beside
/// the queries and keys of every layer of one document.
LayerSums measure_layers(const Llama& model, const AnalysisDocuments& documents, int64_t share,
                         int64_t shares, const WorkDone& done = {});

/// The best use of an anchor's heads in a layer.
struct HeadAssignment {
  int anchor = 0, layer = 0;
  HeadMap heads;                                   ///< heads[h] of the anchor serves head h of the layer
  double similarity = 0, assigned_similarity = 0;  ///< mean over heads: head for head, and assigned
};

/// One for each pair anchor < layer, layers in order. `cosines_LHLH`: mean_cosines().
std::vector<HeadAssignment> assign_heads(const at::Tensor& cosines_LHLH);

/// The maps of a plan's shared layers out of assign_heads(), by layer.
std::vector<HeadMap> head_maps(const SharingPlan& plan, const std::vector<HeadAssignment>& assignments);

/// A plan whose loss is wanted, and under which heads.
struct LossQuery {
  SharingPlan plan;
  std::vector<HeadMap> heads;  ///< empty = head for head
};

/// Loss of a plan, and what it adds to the dense model's: the same documents, so the difference has a
/// standard error of its own. Values are losses of documents, weights their targets.
struct PlanLoss {
  RatioSums loss, increase;
  PlanLoss& operator+=(const PlanLoss& other);
};

struct SpanSums {
  RatioSums dense;
  std::vector<PlanLoss> plans;  ///< one for each query
  SpanSums& operator+=(const SpanSums& other);
};

/// A dense model's loss and that of each query on the same batches, weights loaded once. Documents without a
/// target count nothing.
SpanSums measure_spans(const Llama& model, const AnalysisDocuments& documents,
                       const std::vector<LossQuery>& queries, int64_t share, int64_t shares,
                       const WorkDone& done = {});

}  // namespace satune
