// Recorded parts as the trace of Chrome's "Trace Event Format" (JSON), which Perfetto (ui.perfetto.dev) and
// chrome://tracing open: complete events ("ph": "X") with microseconds in "ts" and "dur".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/shard.h"
#include "trainer/step_recorder.h"

namespace satune {

/// One process a rank, with a row for the host's main thread, one for the card where there is one, and as
/// many for communication as overlap. Parts of one row nest. "args" holds "kind" (the name without its
/// number), and "number" where there is one.
std::string trace_json(const StepRecorder::Recorded& recorded, const World& world);

/// One line of a summary: parts of equal kind at equal places, all layers together.
struct PartTotal {
  std::string kind;
  int depth = 0;  ///< below the line that it is part of
  int64_t calls = 0;
  double microseconds = 0;  ///< on the card where there is one
  double own = 0;           ///< of them, in none of the parts inside
};

/// In the order in which the kinds first began, each followed by what lies in it.
std::vector<PartTotal> part_totals(const StepRecorder::Recorded& recorded);

/// A table: segment, calls, ms, share of what was recorded.
std::string summary_text(const StepRecorder::Recorded& recorded);

}  // namespace satune
