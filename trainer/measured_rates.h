// What an earlier run achieved, as the rate that predictions for other runs on the same device count with.
#pragma once

#include <filesystem>
#include <optional>

namespace satune {

struct MeasuredRate {
  double flops = 0;             ///< per second and rank
  std::optional<bool> on_card;  ///< what the newest snapshot says; unset without one
};

/// The rate of one rank over the later half of a run's steps (median), from its metrics.jsonl: what a step
/// computes, activations computed again included, over the time between its begin and its end (waiting for
/// other ranks included, for data, and for the update). Rows count as full: where documents are short and few
/// are packed, attention costs less than is assumed, and the rate comes out high by that. The number of ranks
/// is that of the newest snapshot; where there is none the run must have been of one process. The run may be
/// at work or have been killed: a last line without its end is left out. Throws BadInput naming file and key:
/// not a run folder, a line that is no row, fewer than four steps, ranks that nothing tells.
MeasuredRate measured_rate(const std::filesystem::path& run);

}  // namespace satune
