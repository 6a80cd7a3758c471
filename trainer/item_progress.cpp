#include "trainer/item_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "trainer/progress.h"

namespace satune {
namespace {

constexpr int64_t kBarWidth = 24;
constexpr double kSecondsBetweenBars = 0.1, kSecondsBetweenLines = 30, kSecondsBetweenWords = 0.5;

}  // namespace

ItemProgress::ItemProgress(std::string name, int64_t total, int64_t done, bool shown, std::FILE* out)
    : name_(std::move(name)),
      total_(total),
      before_(done),
      out_(out),
      shown_(shown),
      terminal_(isatty(fileno(out)) == 1),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

ItemProgress::~ItemProgress() {
  if (!drawn_ || !terminal_) return;
  draw(std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
  fmt::print(out_, "\n");
}

void ItemProgress::with_others(std::function<ItemCount()> others, std::function<void(ItemCount)> tell) {
  others_ = std::move(others);
  tell_ = std::move(tell);
}

void ItemProgress::item(int64_t tokens) {
  ++here_.items;
  here_.tokens += tokens;
  look();
}

void ItemProgress::look() {
  if (!shown_ && !tell_) return;
  const auto now = std::chrono::steady_clock::now();
  const double pause = std::chrono::duration<double>(now - last_).count();
  if (pause < (!shown_ ? kSecondsBetweenWords : terminal_ ? kSecondsBetweenBars : kSecondsBetweenLines))
    return;
  last_ = now;
  if (!shown_) return tell_(here_);
  drawn_ = true;
  if (others_) others_count_ = others_();
  draw(std::chrono::duration<double>(now - start_).count());
}

void ItemProgress::draw(double seconds) {
  const int64_t computed = here_.items + others_count_.items,
                done = std::min(before_ + computed, total_);  // others may have had some before
  const auto tokens = static_cast<double>(here_.tokens + others_count_.tokens);
  const double left =
      computed > 0 ? seconds / static_cast<double>(computed) * static_cast<double>(total_ - done) : 0;
  const std::string bar = item_bar(name_, done, total_, seconds > 0 ? tokens / seconds : 0, left);
  fmt::print(out_, "{}{}{}", terminal_ ? "\r" : "", bar, terminal_ ? "\033[K" : "\n");
  std::fflush(out_);
}

std::string item_bar(const std::string& name, int64_t done, int64_t total, double tokens_per_second,
                     double seconds_left) {
  const auto filled = static_cast<size_t>(total > 0 ? kBarWidth * done / total : kBarWidth);
  const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
  return fmt::format("{}  [{}] {}/{}  {} tok/s  {} left", name, bar, done, total,
                     format_count(tokens_per_second), format_duration(seconds_left));
}

}  // namespace satune
