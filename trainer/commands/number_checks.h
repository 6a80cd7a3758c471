// What the numbers of options may be, told in few words: CLI11's own checks print the limits of the type.
#pragma once

#include <CLI/CLI.hpp>

namespace satune {

/// A number of 0 or more, or above 0: finite.
CLI::Validator not_negative();
CLI::Validator positive();

/// A whole number from 0 to 2^64 - 1. CLI11 itself wraps what is below and cuts what is above.
CLI::Validator seed_number();

}  // namespace satune
