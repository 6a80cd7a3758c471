// lm-eval 0.4.13's wikitext: the log-likelihood of whole pages, over their words and bytes.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation/task.h"

namespace satune {

/// A page as the model reads it: the spaces that WikiText puts around punctuation are taken out.
std::string detokenize_wikitext(std::string_view page);

/// The articles of WikiText's own files: each begins at a heading of the first level.
std::vector<std::string> split_wikitext(std::string_view text);

/// word_perplexity and byte_perplexity = exp(-log p / words) and / bytes of the pages before they were
/// detokenized, bits_per_byte, each with a _stderr (pages are what is drawn); n (pages), windows. Each page
/// is BOS (or EOS where there is none) and the page as the tokenizer encodes it, with its own BOS, which is
/// predicted too, as lm-eval has it; windows are those of stride = length = max_positions of
/// perplexity_windows.h, and the items. Results: {"page", "log_likelihood", "tokens", "words", "bytes"}, the
/// last two of the whole page. `data` is wiki.test.raw or .tokens (or another .txt), rows with `page`, or the
/// folder with one of them. Throws BadInput.
std::unique_ptr<Task> make_wikitext(const std::filesystem::path& data, const TaskOptions& options,
                                    const Tokenizer& tokenizer);

}  // namespace satune
