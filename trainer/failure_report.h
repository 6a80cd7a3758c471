// How a process of a run tells why it ends.
#pragma once

#include <string>

#include "trainer/rank_environment.h"

namespace satune {

/// "satune: error: MESSAGE" on stderr, in one line.
void print_error(const std::string& message);

/// The same, and the error file for whoever started this rank. Under our own launcher the file is enough: it
/// prints the line of the rank that failed first, and only that one. Never throws.
void report_rank_failure(const RankEnvironment& environment, const std::string& message, int exit_code);

}  // namespace satune
