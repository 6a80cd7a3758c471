// Numbers as they are shown.
#pragma once

#include <cmath>

namespace satune {

/// The number; a NaN without its sign, which is chance and would be printed.
inline double shown_number(double value) {
  return std::isnan(value) ? std::abs(value) : value;
}

}  // namespace satune
