// The cause of a rank's failure, for whoever started it.
#pragma once

#include <string>

#include "trainer/rank_environment.h"

namespace satune {

/// Writes `message` to `environment.error_file` in the format that torchrun's summary reads
/// ({"message": {"message", "errorCode", "extraInfo": {"py_callstack", "timestamp"}}}), atomically. Never
/// throws; does nothing where there is no error file, or where an earlier cause already stands in it.
void write_error_file(const RankEnvironment& environment, const std::string& message, int exit_code);

}  // namespace satune
