// What a command prints must arrive: a report into a full disk is lost, and the exit code has to say so.
#pragma once

namespace satune {

/// Writes out what is buffered. Throws EnvironmentError when that, or anything printed before, failed.
void finish_standard_output();

}  // namespace satune
