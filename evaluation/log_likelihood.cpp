#include "evaluation/log_likelihood.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "data/files/error.h"
#include "data/prompt_template.h"
#include "data/utf8.h"

namespace satune {
namespace {

int64_t common_length(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

class TreeBuilder {
 public:
  TreeBuilder(std::span<const ScoredSequence* const> sequences, std::optional<int64_t> worth)
      : sequences_(sequences), worth_(worth), order_(sequences.size()) {
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](size_t a, size_t b) {
      const auto x = sequences[a]->inputs(), y = sequences[b]->inputs();
      return std::lexicographical_compare(x.begin(), x.end(), y.begin(), y.end());
    });
    for (size_t i = 1; i < order_.size(); ++i) common_.push_back(common_length(inputs(i - 1), inputs(i)));
    tree_.paths.resize(sequences.size());
  }

  SequenceTree build() {
    if (!order_.empty()) add(0, order_.size(), 0, -1);
    return std::move(tree_);
  }

 private:
  std::span<const int32_t> inputs(size_t i) const { return sequences_[order_[i]]->inputs(); }

  /// Documents of the sequences [low, high), which share `depth` tokens that end in document `parent`.
  void add(size_t low, size_t high, int64_t depth, int64_t parent) {
    const auto length = static_cast<int64_t>(inputs(low).size());
    const auto first = common_.begin() + static_cast<ptrdiff_t>(low),
               last = common_.begin() + static_cast<ptrdiff_t>(high) - 1;
    const int64_t shared = first == last ? length : *std::min_element(first, last);
    const bool all_equal = shared == static_cast<int64_t>(inputs(high - 1).size());  // the longest comes last
    const int64_t saved = (shared - depth) * static_cast<int64_t>(high - low - 1);
    if (shared > depth && (all_equal || (worth_ && saved >= *worth_))) {
      parent = add_document(low, high, depth, shared, parent);
      depth = shared;
    }
    if (all_equal) return;
    for (size_t begin = low, i = low + 1; i <= high; ++i) {
      if (i < high && common_[i - 1] != shared) continue;
      add(begin, i, depth, parent);
      begin = i;
    }
  }

  int64_t add_document(size_t low, size_t high, int64_t depth, int64_t end, int64_t parent) {
    const SequenceTree::Step step{tree_.document_starts.back(), depth, end - depth};
    const auto tokens = inputs(low).subspan(static_cast<size_t>(depth), static_cast<size_t>(end - depth));
    tree_.tokens.insert(tree_.tokens.end(), tokens.begin(), tokens.end());
    for (int64_t p = depth; p < end; ++p) tree_.positions.push_back(static_cast<int32_t>(p));
    tree_.document_starts.push_back(static_cast<int64_t>(tree_.tokens.size()));
    tree_.parents.push_back(parent);
    for (size_t i = low; i < high; ++i) tree_.paths[order_[i]].push_back(step);
    return static_cast<int64_t>(tree_.parents.size()) - 1;
  }

  std::span<const ScoredSequence* const> sequences_;
  std::optional<int64_t> worth_;
  std::vector<size_t> order_;    ///< of the sequences, ascending
  std::vector<int64_t> common_;  ///< tokens that neighbours in that order share
  SequenceTree tree_;
};

at::Tensor int64_tensor(const auto& values, at::Device device) {
  return at::tensor(at::IntArrayRef(std::vector<int64_t>(values.begin(), values.end())), at::kLong)
      .to(device);
}

}  // namespace

std::optional<int32_t> first_context_token(const Tokenizer& tokenizer) {
  return tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
}

ScoredSequence encode_scored(std::string_view context, std::string_view continuation,
                             const Tokenizer& tokenizer, int64_t max_length, std::string_view where) {
  const std::string_view trimmed = trim_white_space(context);
  const size_t kept = trimmed.empty() ? 0 : static_cast<size_t>(trimmed.end() - context.begin());
  const std::string whole = std::string(context) + std::string(continuation);
  std::vector<int32_t> whole_tokens = encode_raw_prompt(whole, tokenizer);
  ScoredSequence sequence;
  if (kept > 0) {
    sequence.tokens = encode_raw_prompt(context.substr(0, kept), tokenizer);
  } else if (const auto first = first_context_token(tokenizer)) {
    sequence.tokens = {*first};
    if (!tokenizer.adds_bos()) whole_tokens.insert(whole_tokens.begin(), *first);
  }
  sequence.targets = static_cast<int64_t>(whole_tokens.size()) - static_cast<int64_t>(sequence.tokens.size());
  if (sequence.targets < 1 || sequence.targets > max_length || sequence.tokens.empty())
    throw bad_input(where, fmt::format("a continuation of {} tokens", std::max<int64_t>(sequence.targets, 0)),
                    fmt::format("1 to {}, after a context of at least one", max_length));
  sequence.tokens.insert(sequence.tokens.end(), whole_tokens.end() - sequence.targets, whole_tokens.end());
  const int64_t beyond = static_cast<int64_t>(sequence.tokens.size()) - (max_length + 1);
  if (beyond > 0) sequence.tokens.erase(sequence.tokens.begin(), sequence.tokens.begin() + beyond);
  return sequence;
}

int64_t SequenceTree::row(int64_t sequence, int64_t position) const {
  for (const Step& step : paths[sequence])
    if (position < step.depth + step.length) return step.first_row + position - step.depth;
  TORCH_CHECK(false, "position ", position, " is beyond the sequence");
}

SequenceTree make_sequence_tree(std::span<const ScoredSequence* const> sequences,
                                std::optional<int64_t> worth) {
  return TreeBuilder(sequences, worth).build();
}

std::vector<std::vector<int64_t>> plan_scoring(const std::vector<std::vector<ScoredSequence>>& sequences,
                                               const std::vector<int64_t>& items, int64_t batch_items,
                                               int64_t batch_tokens, std::optional<int64_t> worth) {
  std::vector<int64_t> order = items;
  const auto begins = [&](int64_t item) { return sequences[item].front().inputs(); };
  // Tokens of `inputs` that the pass computes anyway, for those before.
  const auto shared = [&](std::span<const int32_t> last, std::span<const int32_t> inputs) {
    const int64_t common = common_length(last, inputs);
    const bool equal = std::ranges::equal(last, inputs);
    return worth || equal ? common : 0;
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::ranges::lexicographical_compare(begins(a), begins(b));
  });
  std::vector<std::vector<int64_t>> passes;
  int64_t tokens = 0;
  std::span<const int32_t> before;
  for (const int64_t item : order) {
    int64_t added = 0;
    std::span<const int32_t> last = before;
    for (const ScoredSequence& sequence : sequences[item]) {
      added += static_cast<int64_t>(sequence.inputs().size()) - shared(last, sequence.inputs());
      last = sequence.inputs();
    }
    const bool full =
        !passes.empty() && (batch_items > 0 ? static_cast<int64_t>(passes.back().size()) >= batch_items
                                            : tokens + added > batch_tokens);
    if (passes.empty() || full) {
      passes.emplace_back();
      tokens = shared(before, begins(item));  // computed again in this pass
    }
    passes.back().push_back(item);
    tokens += added;
    before = last;
  }
  return passes;
}

std::optional<int64_t> worth_sharing(const at::Device& device) {
  return device.is_cpu() ? std::optional(kWorthSharing) : std::nullopt;
}

Scores score_sequences(Llama& model, std::span<const ScoredSequence* const> sequences) {
  const at::Device device = model.weights().device();
  const SequenceTree tree = make_sequence_tree(sequences, worth_sharing(device));
  DeviceBatch batch;
  batch.tokens_N = int64_tensor(tree.tokens, device);
  batch.positions_N = int64_tensor(tree.positions, device);
  batch.document_starts = tree.document_starts;
  const bool any_parent =
      std::any_of(tree.parents.begin(), tree.parents.end(), [](int64_t parent) { return parent >= 0; });
  if (any_parent) batch.parents = tree.parents;
  std::vector<int64_t> rows, targets;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const std::vector<int32_t>& tokens = sequences[s]->tokens;
    for (size_t i = tokens.size() - static_cast<size_t>(sequences[s]->targets); i < tokens.size(); ++i) {
      rows.push_back(tree.row(static_cast<int64_t>(s), static_cast<int64_t>(i) - 1));
      targets.push_back(tokens[i]);
    }
  }
  batch.targets = {int64_tensor(rows, device), int64_tensor(targets, device)};
  const at::Tensor losses_M = model.target_losses(batch).to(at::kCPU, at::kDouble).contiguous();
  Scores scores;
  scores.tokens = static_cast<int64_t>(tree.tokens.size());
  const double* loss = losses_M.const_data_ptr<double>();
  for (const ScoredSequence* sequence : sequences) {
    scores.log_likelihoods.push_back(-std::accumulate(loss, loss + sequence->targets, 0.0));
    loss += sequence->targets;
    // A number in a report has to be one.
    if (!std::isfinite(scores.log_likelihoods.back()))
      throw std::runtime_error(
          "the model's loss is not finite: its weights or their products are infinite or NaN");
  }
  return scores;
}

}  // namespace satune
