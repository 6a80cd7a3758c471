// What a command prints must arrive: a report into a full disk is lost, and the exit code has to say so.
#pragma once

#include <functional>
#include <vector>

namespace satune {

/// Writes out what is buffered. Throws EnvironmentError when that, or anything printed before, failed.
void finish_standard_output();

/// For a command that writes files and prints: does each of `writes`, then prints and finishes standard
/// output, whatever fails, and throws what failed first. Output that nobody reads any more (SIGPIPE, ignored
/// from here on) is an error like any other.
void finish_after(const std::vector<std::function<void()>>& writes, const std::function<void()>& print);

}  // namespace satune
