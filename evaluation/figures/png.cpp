#include <png.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "evaluation/figures/drawing.h"
#include "evaluation/figures/pixel_font.h"

namespace satune {
namespace {

/// Pixels painted at `scale` times a drawing's size. Everything outside is cut off.
class Canvas {
 public:
  Canvas(int width, int height, int scale)
      : width_(width * scale), height_(height * scale), scale_(scale), pixels_(3L * width_ * height_, 255) {}

  void paint(const Rectangle& shape) {
    fill(shape.x * scale_, shape.y * scale_, (shape.x + shape.width) * scale_,
         (shape.y + shape.height) * scale_, shape.fill);
  }

  void paint(const Disc& shape) {
    const double x = shape.x * scale_, y = shape.y * scale_, r = shape.radius * scale_;
    for (int row = static_cast<int>(y - r); row <= y + r; ++row)
      for (int column = static_cast<int>(x - r); column <= x + r; ++column)
        blend(column, row, shape.fill, r + 0.5 - std::hypot(column + 0.5 - x, row + 0.5 - y));
  }

  void paint(const Polyline& shape) {
    double along = 0;  // from the line's start, for the dashes
    for (size_t i = 1; i < shape.points.size(); ++i) along = segment(shape, i, along);
  }

  void paint(const Label& label) {
    // Capitals of a font are about 0.7 of its size tall.
    const int dot = std::max(1, static_cast<int>(std::lround(label.size * 0.7 * scale_ / kGlyphHeight)));
    const int length = (static_cast<int>(label.text.size()) * kGlyphAdvance - 1) * dot;
    const double shift = label.anchor == TextAnchor::kStart    ? 0
                         : label.anchor == TextAnchor::kMiddle ? -length / 2.0
                                                               : -length;
    const double x = label.x * scale_, y = label.y * scale_, above = kGlyphHeight * dot / 2.0;
    for (size_t i = 0; i < label.text.size(); ++i) {
      const double start = shift + static_cast<double>(i) * kGlyphAdvance * dot;
      for (int row = 0; row < kGlyphHeight; ++row)
        for (int column = 0; column < kGlyphWidth; ++column) {
          if ((glyph(label.text[i])[row] >> (kGlyphWidth - 1 - column) & 1) == 0) continue;
          const double u = std::round(start + column * dot),
                       v = std::round((row + glyph_drop(label.text[i])) * dot - above);
          if (label.vertical) {
            fill(x + v, y - u - dot, x + v + dot, y - u, label.colour);
          } else {
            fill(x + u, y + v, x + u + dot, y + v + dot, label.colour);
          }
        }
    }
  }

  std::string encode() const {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(width_);
    image.height = static_cast<png_uint_32>(height_);
    image.format = PNG_FORMAT_RGB;
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
    std::string bytes(size, '\0');
    if (!png_image_write_to_memory(&image, bytes.data(), &size, 0, pixels_.data(), 0, nullptr))
      throw std::runtime_error(std::string("libpng: ") + image.message);
    bytes.resize(size);
    return bytes;
  }

 private:
  /// Pixels whose centre lies inside.
  void fill(double left, double top, double right, double bottom, Colour colour) {
    for (int row = std::max(0L, std::lround(top)); row < std::min<long>(height_, std::lround(bottom)); ++row)
      for (int column = std::max(0L, std::lround(left)); column < std::min<long>(width_, std::lround(right));
           ++column)
        blend(column, row, colour, 1);
  }

  void blend(int column, int row, Colour colour, double share) {
    if (column < 0 || row < 0 || column >= width_ || row >= height_ || share <= 0) return;
    share = std::min(share, 1.0);
    uint8_t* pixel = &pixels_[3L * (static_cast<long>(row) * width_ + column)];
    const uint8_t ink[3] = {colour.red, colour.green, colour.blue};
    for (int i = 0; i < 3; ++i)
      pixel[i] = static_cast<uint8_t>(std::lround(pixel[i] + share * (ink[i] - pixel[i])));
  }

  /// From point i - 1 to point i: each pixel by its distance from the line. Returns `along` at its end.
  double segment(const Polyline& shape, size_t i, double along) {
    const double ax = shape.points[i - 1].first * scale_, ay = shape.points[i - 1].second * scale_,
                 bx = shape.points[i].first * scale_, by = shape.points[i].second * scale_;
    const double length = std::hypot(bx - ax, by - ay), half = shape.width * scale_ / 2;
    if (length == 0) return along;
    const int margin = static_cast<int>(half) + 1;
    for (int row = static_cast<int>(std::min(ay, by)) - margin; row <= std::max(ay, by) + margin; ++row)
      for (int column = static_cast<int>(std::min(ax, bx)) - margin; column <= std::max(ax, bx) + margin;
           ++column) {
        const double dx = column + 0.5 - ax, dy = row + 0.5 - ay;
        const double t = (dx * (bx - ax) + dy * (by - ay)) / length;
        if (t < -0.5 || t > length + 0.5) continue;
        if (shape.dash > 0 &&
            std::fmod(along + std::max(t, 0.0), 2.0 * shape.dash * scale_) >= shape.dash * scale_)
          continue;
        blend(column, row, shape.colour, half + 0.5 - std::abs(dx * (by - ay) - dy * (bx - ax)) / length);
      }
    return along + length;
  }

  int width_, height_, scale_;
  std::vector<uint8_t> pixels_;
};

/// One '?' for each character that the letters lack.
std::string plain(const std::string& text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) result += c;
    if (byte >= 0xC0) result += '?';
  }
  return result;
}

}  // namespace

std::string to_png(const Drawing& drawing, int scale) {
  Canvas canvas(drawing.width, drawing.height, scale);
  for (const auto& shape : drawing.shapes) {
    if (const auto* label = std::get_if<Label>(&shape)) {
      Label ascii = *label;
      ascii.text = plain(label->text);
      canvas.paint(ascii);
    } else {
      std::visit([&](const auto& each) { canvas.paint(each); }, shape);
    }
  }
  return canvas.encode();
}

}  // namespace satune
