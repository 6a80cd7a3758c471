#include "evaluation/figures/colours.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace satune {

std::string to_hex(Colour colour) {
  return fmt::format("#{:02x}{:02x}{:02x}", colour.red, colour.green, colour.blue);
}

Colour viridis(double fraction) {
  static constexpr std::array<Colour, 9> kKnots = {{{68, 1, 84},
                                                    {71, 45, 123},
                                                    {59, 82, 139},
                                                    {44, 114, 142},
                                                    {33, 144, 140},
                                                    {39, 173, 129},
                                                    {93, 200, 99},
                                                    {170, 220, 50},
                                                    {253, 231, 37}}};
  if (std::isnan(fraction)) return {230, 230, 230};
  const double place = std::clamp(fraction, 0.0, 1.0) * (kKnots.size() - 1);
  const size_t low = std::min<size_t>(static_cast<size_t>(place), kKnots.size() - 2);
  const double part = place - static_cast<double>(low);
  const auto mix = [part](uint8_t a, uint8_t b) {
    return static_cast<uint8_t>(std::lround(a + part * (b - a)));
  };
  const Colour &a = kKnots[low], &b = kKnots[low + 1];
  return {mix(a.red, b.red), mix(a.green, b.green), mix(a.blue, b.blue)};
}

Colour readable_on(Colour background) {
  // WCAG 2.1's relative luminance; black has the greater contrast above 0.179.
  const auto linear = [](uint8_t channel) {
    const double value = channel / 255.0;
    return value <= 0.04045 ? value / 12.92 : std::pow((value + 0.055) / 1.055, 2.4);
  };
  const double luminance =
      0.2126 * linear(background.red) + 0.7152 * linear(background.green) + 0.0722 * linear(background.blue);
  return luminance > 0.179 ? Colour{0, 0, 0} : Colour{255, 255, 255};
}

Colour line_colour(size_t index) {
  static constexpr std::array<Colour, 7> kColours = {{{0, 114, 178},
                                                      {213, 94, 0},
                                                      {0, 158, 115},
                                                      {204, 121, 167},
                                                      {230, 159, 0},
                                                      {86, 180, 233},
                                                      {0, 0, 0}}};
  return kColours[index % kColours.size()];
}

int line_dash(size_t index) {
  static constexpr std::array<int, 4> kDashes = {0, 6, 3, 10};
  return kDashes[index % kDashes.size()];
}

}  // namespace satune
