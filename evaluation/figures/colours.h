// Colours that colour-blind readers tell apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace satune {

struct Colour {
  uint8_t red = 0, green = 0, blue = 0;
  bool operator==(const Colour&) const = default;
};

std::string to_hex(Colour colour);  ///< "#440154"

/// The viridis map (van der Walt and Smith 2015), interpolated between nine of its colours: `fraction` in
/// [0, 1], clamped; lightness grows with it. NaN is a light grey.
Colour viridis(double fraction);

/// Black or white, whichever reads better on `background`.
Colour readable_on(Colour background);

/// Colours of lines, after Okabe and Ito (2008); repeats after seven.
Colour line_colour(size_t index);
/// Dashes tell lines apart without colour: drawn and skipped lengths in pixels; 0 = solid.
int line_dash(size_t index);

inline constexpr Colour kInk{34, 34, 34}, kFaintInk{110, 110, 110}, kGrid{225, 225, 225},
    kPaper{255, 255, 255};

}  // namespace satune
