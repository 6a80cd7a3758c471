#include "evaluation/answer_text.h"

#include <algorithm>
#include <utility>

namespace satune {
namespace {

/// Bytes at the end of `text` that a stop string may begin with.
size_t beginning_of_stop(std::string_view text, std::string_view stop) {
  for (size_t bytes = std::min(text.size(), stop.size() - 1); bytes > 0; --bytes)
    if (text.ends_with(stop.substr(0, bytes))) return bytes;
  return 0;
}

}  // namespace

AnswerText::AnswerText(const Tokenizer& tokenizer, std::vector<int32_t> context,
                       std::vector<std::string> stops, std::function<void(std::string_view)> write)
    : stops_(std::move(stops)),
      write_(std::move(write)),
      stream_(tokenizer, std::move(context), [this](std::string_view piece) { take(piece); }) {}

bool AnswerText::append(int32_t token) {
  if (!stop_) stream_.append(token);
  return !stop_;
}

void AnswerText::finish() {
  if (!stop_) stream_.finish();
  if (!stop_) release(held_.size());
}

void AnswerText::take(std::string_view piece) {
  held_ += piece;
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at >= first) continue;
    first = at;
    stop_ = stop;
  }
  if (stop_) return release(first);
  size_t keep = 0;
  for (const std::string& stop : stops_) keep = std::max(keep, beginning_of_stop(held_, stop));
  release(held_.size() - keep);
}

void AnswerText::release(size_t bytes) {
  if (bytes > 0) write_(std::string_view(held_).substr(0, bytes));
  text_.append(held_, 0, bytes);
  held_.erase(0, bytes);
}

}  // namespace satune
