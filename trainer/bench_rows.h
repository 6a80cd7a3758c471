// The parts of recorded steps beside their floors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/files/json.h"
#include "trainer/bench_floors.h"
#include "trainer/bench_work.h"
#include "trainer/step_recorder.h"

namespace satune {

/// One kind of part at one place, all layers and micro-batches of a step together.
struct BenchRow {
  std::string segment;  ///< "embedding", "layers", "head" or "step"
  std::string pass;     ///< "forward", "backward", "again" (computed a second time) or ""
  std::string part;     ///< "attention" ...; "rest": what no part inside has told
  double calls = 0, milliseconds = 0, share = 0;  ///< of a step
  PartWork work;
  double floor_milliseconds = 0;  ///< 0 where there is no such work
  /// Of the floor's time; 0 without one.
  double ratio() const { return floor_milliseconds > 0 ? milliseconds / floor_milliseconds : 0; }
};

/// Of all parts called "step {}", as means over them. The rows' times add up to those steps'.
std::vector<BenchRow> bench_rows(const StepRecorder::Recorded& recorded, const WorkShape& shape,
                                 const Floors& floors);

Json rows_json(const std::vector<BenchRow>& rows);
std::string rows_text(const std::vector<BenchRow>& rows);

}  // namespace satune
