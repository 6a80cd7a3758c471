// How a long text is cut for perplexity: windows slide over it, and every token is counted once.
#pragma once

#include <cstdint>
#include <vector>

namespace satune {

/// Inputs are s[begin, end); token s[i + 1] is predicted from s[begin..i], and counted for i in
/// [first_counted, end).
struct PerplexityWindow {
  int64_t begin = 0, end = 0, first_counted = 0;
  bool operator==(const PerplexityWindow&) const = default;
};

/// Windows over a sequence s of `tokens` ids (BOS first, where the tokenizer has one). There are
/// tokens - 1 predictions, each counted in exactly one window:
///   the first window holds s[0, min(L, tokens - 1)); each later one ends `stride` further (at most at
///   tokens - 1), begins L earlier, and counts only what the windows before it have not.
/// So a counted token has at least L - stride tokens of context (after the first window). stride = L is the
/// rolling log-likelihood of lm-eval (`get_rolling_token_windows` with context_len 1); a smaller stride is
/// the sliding window of transformers' perplexity guide. Empty for fewer than 2 tokens.
/// Preconditions: max_length >= 1, 1 <= stride <= max_length.
std::vector<PerplexityWindow> perplexity_windows(int64_t tokens, int64_t max_length, int64_t stride);

}  // namespace satune
