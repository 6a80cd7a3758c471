// What CLI11 has against an option, in the form of every error of the program.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace satune {

/// "--steps: found two, expected a whole number" for a value that is no number, out of range, missing, or one
/// too many; CLI11's own words otherwise. `command`: the one whose options were parsed.
std::string describe_option_error(const CLI::App& command, const CLI::ParseError& error);

}  // namespace satune
