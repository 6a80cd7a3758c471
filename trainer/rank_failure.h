// Which of the ranks that failed is the cause, and what to say about it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/child_process.h"

namespace satune {

struct RankFailure {
  int64_t rank = 0;
  ProcessEnd end;
  /// Ends that were noticed together have one number. Those of an earlier one had ended when those of a
  /// later one still ran.
  int64_t noticed = 0;
  /// When the rank wrote its error file, or else was noticed: seconds since 1970.
  double time = 0;
  std::string message;  ///< from its error file; "" without one
};

/// Of a rank whose end was noticed just now; reads its error file.
RankFailure describe_failure(int64_t rank, const ProcessEnd& end, int64_t noticed,
                             const std::filesystem::path& error_file);

/// MESSAGE, "killed by SIGKILL" or "exit code 3 without a message"; one line.
std::string reason(const RankFailure& failure);

/// "rank 1: REASON"; where the rank has named itself, REASON alone.
std::string named_reason(const RankFailure& failure);

/// What failed first, where others failed because of it. A rank that a signal killed before any other had
/// ended cannot be a consequence, and it leaves no file; otherwise the earliest time counts: a rank writes
/// its file before others can hear of it, but may take longer than they to end. `failures` is not empty.
const RankFailure& first_cause(const std::vector<RankFailure>& failures);

/// The exit code of a run that ended for this cause: the rank's, or kExitEnvironment when a signal killed it.
int exit_code_of(const RankFailure& cause);

}  // namespace satune
