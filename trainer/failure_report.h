// How a process of a run tells why it ends.
#pragma once

#include <string>
#include <string_view>

#include "data/files/error.h"
#include "trainer/rank_environment.h"

namespace satune {

/// Why a command fails, as its user sees it, and the program's exit code.
struct Failure {
  std::string message;
  int exit_code = kExitFailure;
};
/// Of the exception that is being handled; to be called in a catch block.
Failure current_failure();

/// `message` as one line of a terminal and of UTF-8: control characters and bytes that are not UTF-8 as
/// \xHH, and an end where it is very long, since messages may quote a user's file.
std::string error_line(std::string_view message);

/// Whether it says that memory ran out, the machine's or a card's; likewise.
bool out_of_memory();

/// "satune: error: MESSAGE" on stderr, in one line.
void print_error(const std::string& message);

/// The same, and the error file for whoever started this rank. Under our own launcher the file is enough: it
/// prints the line of the rank that failed first, and only that one. Never throws.
void report_rank_failure(const RankEnvironment& environment, const std::string& message, int exit_code);

}  // namespace satune
