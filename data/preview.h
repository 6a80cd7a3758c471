// One example as it is trained, readable: what `satune train --dry-run` prints.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/batch.h"
#include "data/tokenizer.h"

namespace satune {

/// A heading, then a line per token of one document of the batch: position, id, token text (escaped, in
/// quotes) and beside it the target's id and text, or "-" where nothing is learned. Of a document longer than
/// `max_tokens` (> 0) the middle is left out and the gap is counted.
std::vector<std::string> preview_lines(const Batch& batch, int64_t document, const Tokenizer& tokenizer,
                                       int64_t max_tokens = 0);

/// Text in double quotes with control characters, quotes, backslashes and bytes that are not UTF-8 escaped.
std::string quote_text(std::string_view text);

}  // namespace satune
