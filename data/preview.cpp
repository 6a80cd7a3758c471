#include "data/preview.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/files/counted.h"
#include "data/tokenizers/code_points.h"

namespace satune {
namespace {

std::string pad(std::string text, size_t width) {
  const auto shown = static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
  if (shown < width) text.append(width - shown, ' ');
  return text;
}

std::string token_line(const Batch& batch, size_t i, const Tokenizer& tokenizer) {
  const int32_t token = batch.tokens[i], target = batch.targets[i];
  const std::string learned = target == kIgnoreTarget
                                  ? "-"
                                  : fmt::format("{:>6} {}", target, quote_text(tokenizer.token_text(target)));
  return fmt::format("{:>6} {:>6} {} -> {}", batch.positions[i], token,
                     pad(quote_text(tokenizer.token_text(token)), 20), learned);
}

}  // namespace

std::string quote_text(std::string_view text) {
  std::string quoted = "\"";
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    const std::string_view bytes = text.substr(i, c.length);
    if (c.value == '\n') {
      quoted += "\\n";
    } else if (c.value == '\r') {
      quoted += "\\r";
    } else if (c.value == '\t') {
      quoted += "\\t";
    } else if (c.value == '"' || c.value == '\\') {
      quoted += fmt::format("\\{}", bytes);
    } else if (!c.valid || c.value < 0x20 || (c.value >= 0x7F && c.value < 0xA0)) {
      for (const char byte : bytes) quoted += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
    } else {
      quoted += bytes;
    }
    i += c.length;
  }
  return quoted + "\"";
}

std::vector<std::string> preview_lines(const Batch& batch, int64_t document, const Tokenizer& tokenizer,
                                       int64_t max_tokens) {
  const auto begin = static_cast<size_t>(batch.document_starts[static_cast<size_t>(document)]);
  const auto end = static_cast<size_t>(batch.document_starts[static_cast<size_t>(document) + 1]);
  const auto learned = std::count_if(batch.targets.begin() + static_cast<std::ptrdiff_t>(begin),
                                     batch.targets.begin() + static_cast<std::ptrdiff_t>(end),
                                     [](int32_t target) { return target != kIgnoreTarget; });
  std::vector<std::string> lines = {
      fmt::format("{}, {} of them targets", counted(end - begin, "token"), learned),
      fmt::format("{:>6} {:>6} {} -> {}", "place", "id", pad("token", 20), "target")};
  const size_t shown = max_tokens > 0 ? static_cast<size_t>(max_tokens) : end - begin;
  const bool cut = end - begin > shown;
  const size_t head = cut ? (shown + 1) / 2 : end - begin;
  const size_t tail = cut ? shown - head : 0;
  for (size_t i = begin; i < begin + head; ++i) lines.push_back(token_line(batch, i, tokenizer));
  if (cut) lines.push_back(fmt::format("   ... {} left out ...", counted(end - begin - shown, "token")));
  for (size_t i = end - tail; i < end; ++i) lines.push_back(token_line(batch, i, tokenizer));
  return lines;
}

}  // namespace satune
