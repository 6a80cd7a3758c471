// Letters of five by seven pixels, drawn for satune: figures painted as PNG need no font of the machine.
#pragma once

#include <array>
#include <cstdint>

namespace satune {

inline constexpr int kGlyphWidth = 5, kGlyphHeight = 7, kGlyphAdvance = 6;

/// Rows from the top; bit 4 is the left pixel. '?' for characters outside printable ASCII. Letters
/// with a descender are drawn one row too high: see glyph_drop().
const std::array<uint8_t, kGlyphHeight>& glyph(char character);

/// Rows by which a glyph hangs lower than the others.
int glyph_drop(char character);

}  // namespace satune
