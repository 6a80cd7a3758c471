// A run folder as one side of a comparison.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string_view>

#include "evaluation/result_set.h"

namespace satune {

/// As read_results() says. Throws BadInput for metrics.jsonl that holds no row with a loss or a broken one.
ResultSet read_run_results(const std::filesystem::path& run);

/// Every line of a JSONL file that ends, with its number; a last one that was cut off is left out. Throws
/// BadInput for a file that is not there (expected: `expected`) and for a line that is no JSON.
void for_each_json_line(const std::filesystem::path& path, std::string_view expected,
                        const std::function<void(int64_t number, const Json& line)>& f);

}  // namespace satune
