#include "trainer/data_statistics.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>

#include "data/files/error.h"

namespace satune {
namespace {

constexpr int64_t kMostBins = 40;

/// 1, 2 or 5 times a power of ten: the least of which kMostBins hold `longest`.
int64_t bin_width(int64_t longest) {
  int64_t width = 1;
  for (int64_t power = 1; width * kMostBins <= longest; power *= 10)
    for (const int64_t times : {1, 2, 5})
      if (width * kMostBins <= longest) width = times * power;
  return width;
}

Json histogram(const std::vector<int64_t>& sizes) {
  const int64_t longest = *std::max_element(sizes.begin(), sizes.end()), width = bin_width(longest);
  std::vector<int64_t> counts(static_cast<size_t>(longest / width + 1));
  for (const int64_t size : sizes) ++counts[static_cast<size_t>(size / width)];
  return {{"bin_width", width}, {"counts", counts}};
}

Json source_statistics(BatchSource& source) {
  const Dataset& data = source.dataset();
  const DatasetSummary& summary = data.summary();
  std::vector<int64_t> lengths, targets;
  for (int64_t i = 0; i < data.size(); ++i) {
    const SampleView sample = data.sample(i);
    lengths.push_back(static_cast<int64_t>(sample.tokens.size()));
    targets.push_back(sample.target_count());
  }
  const int64_t rows = source.rows(0);
  const double room = static_cast<double>(rows) * static_cast<double>(source.options().max_length);
  Json json = {{"file", data.cache().data_file().string()},
               {"records", summary.records},
               {"samples", summary.kept},
               {"dropped_empty", summary.dropped_empty},
               {"dropped_overlength", summary.dropped_overlength},
               {"truncated", summary.truncated},
               {"tokens", summary.tokens},
               {"target_tokens", summary.target_tokens},
               {"longest", summary.longest},
               {"packing", source.options().packing},
               {"max_length", source.options().max_length},
               {"rows", rows},
               {"rows_filled", static_cast<double>(summary.tokens) / room}};
  json["lengths"] = histogram(lengths);
  json["target_lengths"] = histogram(targets);
  return json;
}

}  // namespace

Json text_fingerprints(RunPlan& plan) {
  return {{"train", plan.train().dataset().fingerprint()},
          {"eval", plan.eval() != nullptr ? Json(plan.eval()->dataset().fingerprint()) : Json(nullptr)}};
}

Json data_statistics(RunPlan& plan) {
  const bool plain = plan.train().dataset().cache().format() == DataFormat::kText;
  return {{"train", source_statistics(plan.train())},
          {"eval", plan.eval() != nullptr ? source_statistics(*plan.eval()) : Json(nullptr)},
          {"template", plain ? "none: plain text" : plan.prompt_template().name()},
          {"tokenizer", fmt::format("{}, {} ids", plan.tokenizer().kind(), plan.tokenizer().vocab_size())},
          {"texts", text_fingerprints(plan)},
          {"rows_per_step", plan.rows_per_step()},
          {"total_steps", plan.total_steps()}};
}

void write_data_statistics(RunPlan& plan, const std::filesystem::path& run_folder, FileOps& ops) {
  const std::filesystem::path file = run_folder / "data.json";
  try {
    write_file_atomic(file, write_json(data_statistics(plan)), ops);
  } catch (const EnvironmentError& error) {
    spdlog::warn("{}; the run goes on without it", error.what());
  }
}

}  // namespace satune
