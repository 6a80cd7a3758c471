#include "trainer/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace satune {
namespace {

constexpr double kSmoothing = 0.1;      // weight of the newest step in the time left
constexpr double kRedrawSeconds = 0.1;  // a bar drawn more often costs and is not seen

int terminal_width(std::FILE* out) {
  winsize size{};
  return ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string three_digits(double value) {
  return value < 9.995   ? fmt::format("{:.2f}", value)
         : value < 99.95 ? fmt::format("{:.1f}", value)
                         : fmt::format("{:.0f}", value);
}

std::string values(const StepMetrics& m) {
  std::string text = fmt::format("loss {:.4f}", m.loss);
  if (m.eval_loss) text += fmt::format("  eval_loss {:.4f}", *m.eval_loss);
  return text + fmt::format("  {} tok/s", format_count(m.tokens_per_s));
}

}  // namespace

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s >= 86400) return fmt::format("{}d {}h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string format_count(double value) {
  if (!std::isfinite(value)) return "?";
  if (std::abs(value) < 999.5) return fmt::format("{:.0f}", value);
  for (const char unit : {'k', 'M', 'G', 'T'}) {
    value /= 1000;
    if (std::abs(value) < 999.5) return three_digits(value) + unit;
  }
  return fmt::format("{:.0f}T", value);
}

std::string format_bytes(double bytes) {
  if (bytes < 1024) return fmt::format("{:.0f} B", bytes);
  for (const char* unit : {"KiB", "MiB", "GiB", "TiB"}) {
    bytes /= 1024;
    if (bytes < 1023.5) return fmt::format("{} {}", three_digits(bytes), unit);
  }
  return fmt::format("{:.0f} TiB", bytes);
}

std::string progress_line(const StepMetrics& m, int64_t total_steps, double seconds_left) {
  return fmt::format("step {}/{}  epoch {:.2f}  {}  grad_norm {:.3g}  lr {:.3g}  left {}", m.step,
                     total_steps, m.epoch, values(m), m.grad_norm, m.learning_rate,
                     format_duration(seconds_left));
}

std::string progress_bar(const StepMetrics& m, int64_t total_steps, double seconds_left, int width) {
  const double share = total_steps > 0 ? std::clamp(double(m.step) / double(total_steps), 0.0, 1.0) : 1.0;
  const std::string head = fmt::format("{:3.0f}% ", std::floor(100 * share));
  const std::string tail =
      fmt::format(" {}/{}  {}  left {}", m.step, total_steps, values(m), format_duration(seconds_left));
  const int room = width - static_cast<int>(head.size() + tail.size()) - 2;
  if (room < 5) return (head + tail).substr(0, static_cast<size_t>(std::max(width, 0)));
  const auto full = static_cast<size_t>(share * room);
  return head + "[" + std::string(full, '#') + std::string(static_cast<size_t>(room) - full, '.') + "]" +
         tail;
}

Progress::Progress(int64_t total_steps, int64_t logging_steps, std::FILE* out)
    : total_steps_(total_steps),
      logging_steps_(logging_steps),
      out_(out),
      terminal_(isatty(fileno(out)) != 0) {}

Progress::~Progress() {
  if (drawn_) std::fputc('\n', out_);
}

void Progress::step(const StepMetrics& m) {
  step_seconds_ =
      step_seconds_ == 0 ? m.step_seconds : (1 - kSmoothing) * step_seconds_ + kSmoothing * m.step_seconds;
  const double left = step_seconds_ * static_cast<double>(std::max<int64_t>(total_steps_ - m.step, 0));
  // On a terminal the bar is overwritten: evaluations, which are few, get a line that stays.
  if (terminal_ ? m.eval_loss.has_value() : line_due(m)) {
    clear();
    std::fputs((progress_line(m, total_steps_, left) + "\n").c_str(), out_);
    std::fflush(out_);
  }
  if (terminal_) draw(m, left);
}

bool Progress::line_due(const StepMetrics& m) const {
  return m.step % logging_steps_ == 0 || m.step == total_steps_ || m.eval_loss;
}

void Progress::draw(const StepMetrics& m, double seconds_left) {
  const auto now = std::chrono::steady_clock::now();
  const double since = std::chrono::duration<double>(now - last_draw_).count();
  if (drawn_ && since < kRedrawSeconds && m.step != total_steps_) return;
  last_draw_ = now;
  drawn_ = true;
  std::fputs(("\r\033[K" + progress_bar(m, total_steps_, seconds_left, terminal_width(out_) - 1)).c_str(),
             out_);
  std::fflush(out_);
}

void Progress::clear() {
  if (!drawn_) return;
  drawn_ = false;
  std::fputs("\r\033[K", out_);
  std::fflush(out_);
}

}  // namespace satune
