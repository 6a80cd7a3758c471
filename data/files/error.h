// The two error types that reach a user. Everything else that is thrown is a defect of ours (exit code 1).
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace satune {

/// Exit codes of the program; a contract with scripts.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,      ///< anything not named below
  kExitBadInput = 2,     ///< bad command line, input or config
  kExitEnvironment = 3,  ///< device, network, disk
  kExitResumable = 4,    ///< stopped by a signal, and the same command goes on; else the signal itself
};

/// Bad command line, input or configuration. The message is one line that names the file, key or record,
/// what was found and what was expected.
class BadInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The machine does not provide what is needed: device, network, disk.
class EnvironmentError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// "{where}: found {found}, expected {expected}"
inline BadInput bad_input(std::string_view where, std::string_view found, std::string_view expected) {
  return BadInput(fmt::format("{}: found {}, expected {}", where, found, expected));
}

}  // namespace satune
