// Which of several results no other beats in everything that counts.
#pragma once

#include <string>
#include <vector>

#include "evaluation/comparison.h"
#include "evaluation/figures/html_page.h"

namespace satune {

/// Every side of the comparisons with the wanted metrics (TASK.METRIC, METRIC of the first task that has it,
/// or a measurement). A side is on the Pareto front where it has them all and no other is at least as good in
/// each and better in one. Losses, perplexities, bits, bytes, seconds, joules, watts and parameters are
/// better lower, all else higher. With less than two metrics, kv_cache_bytes_per_token is the other one; with
/// none, the first metric of the first task. Empty where nothing was asked for and no side has the two.
/// Throws BadInput naming --pareto for a metric that no side has.
HtmlTable pareto_table(const std::vector<Comparison>& comparisons, std::vector<std::string> wanted = {});

}  // namespace satune
