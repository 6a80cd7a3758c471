// Whether two sides of a comparison were measured on the same.
#pragma once

#include "evaluation/result_set.h"

namespace satune {

/// Throws BadInput as compare_results() says. Tasks of equal item fingerprints are the same though their
/// files differ (a longer file of which --limit takes the same part); other templates or tokenizers are
/// refused even where they gave the same tokens. Where both reports tell fingerprints, a template, tokenizer
/// or data file that one of them alone has is another one; a report without any is taken at its counts.
void check_same_ground(const ResultSet& a, const ResultSet& b);

}  // namespace satune
