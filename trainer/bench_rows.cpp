#include "trainer/bench_rows.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/progress.h"
#include "trainer/trace_file.h"

namespace satune {
namespace {

/// segment, pass and part of a place in the tree.
BenchRow row_at(const std::vector<std::string>& path) {
  BenchRow row;
  row.segment = "step";
  if (path.size() < 2) {
    row.part = "rest";
    return row;
  }
  for (const auto& [prefix, segment] :
       {std::pair{"embedding ", "embedding"}, {"layer ", "layers"}, {"head ", "head"}}) {
    if (!path[1].starts_with(prefix)) continue;
    row.segment = segment;
    row.pass = path[1].substr(std::string_view(prefix).size());
    row.part = path.size() > 2 ? path[2] : row.segment == "embedding" ? "embedding" : "rest";
    if (row.part != part::kAgain) return row;
    row.pass = "again";
    row.part = path.size() > 3 ? path[3] : "rest";
    return row;
  }
  row.part = path.back();
  return row;
}

}  // namespace

std::vector<BenchRow> bench_rows(const StepRecorder::Recorded& recorded, const WorkShape& shape,
                                 const Floors& floors) {
  std::vector<BenchRow> rows;
  std::vector<std::string> path;
  double steps = 0, whole = 0;
  for (const PartTotal& total : part_totals(recorded)) {
    path.resize(static_cast<size_t>(total.depth));
    path.push_back(total.kind);
    if (path.front() != "step") continue;
    if (total.depth == 0) {
      steps = static_cast<double>(total.calls);
      whole = total.microseconds;
    }
    BenchRow row = row_at(path);
    row.calls = static_cast<double>(total.calls) / steps;
    row.milliseconds = total.own / 1000 / steps;
    row.share = whole > 0 ? total.own / whole : 0;
    row.work = work_of(shape, path);
    row.floor_milliseconds = 1000 * floors.seconds(row.work.flops, row.work.bytes, row.work.flops8);
    rows.push_back(std::move(row));
  }
  // "rest" of the whole step last.
  if (!rows.empty()) std::rotate(rows.begin(), rows.begin() + 1, rows.end());
  return rows;
}

Json rows_json(const std::vector<BenchRow>& rows) {
  Json list = Json::array();
  for (const BenchRow& row : rows) {
    const bool has_floor = row.floor_milliseconds > 0;
    list.push_back({{"segment", row.segment},
                    {"pass", row.pass},
                    {"part", row.part},
                    {"calls", row.calls},
                    {"ms", row.milliseconds},
                    {"share", row.share},
                    {"flops", row.work.flops},
                    {"bytes", row.work.bytes},
                    {"floor_ms", has_floor ? Json(row.floor_milliseconds) : Json(nullptr)},
                    {"ratio", has_floor ? Json(row.ratio()) : Json(nullptr)}});
  }
  return list;
}

std::string rows_text(const std::vector<BenchRow>& rows) {
  std::string text = fmt::format("  {:<44}{:>7}{:>11}{:>8}{:>11}{:>11}{:>11}{:>8}\n", "segment", "calls",
                                 "ms", "share", "FLOP", "bytes", "floor ms", "ratio");
  for (const BenchRow& row : rows) {
    const std::string name =
        fmt::format("{}{}{}  {}", row.segment, row.pass.empty() ? "" : " ", row.pass, row.part);
    const bool has_floor = row.floor_milliseconds > 0;
    text += fmt::format("  {:<44}{:>7.5g}{:>11.3f}{:>6.1f} %{:>11}{:>11}{:>11}{:>8}\n", name, row.calls,
                        row.milliseconds, 100 * row.share,
                        row.work.flops > 0 ? format_count(row.work.flops) : "-",
                        row.work.bytes > 0 ? format_count(row.work.bytes) : "-",
                        has_floor ? fmt::format("{:.3f}", row.floor_milliseconds) : "-",
                        has_floor ? fmt::format("{:.2f}", row.ratio()) : "-");
  }
  return text;
}

}  // namespace satune
