#include "trainer/visible_cards.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <set>
#include <string_view>

namespace satune {
namespace {

bool is_number(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

int64_t count_cards(const std::filesystem::path& devices) {
  constexpr std::string_view kPrefix = "nvidia";
  int64_t count = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(devices, error)) {
    const std::string name = entry.path().filename().string();
    const bool card = name.starts_with(kPrefix) && is_number(std::string_view(name).substr(kPrefix.size()));
    // Control groups show cards of others, but do not let us open them.
    if (card && ::access(entry.path().c_str(), R_OK | W_OK) == 0) ++count;
  }
  return count;
}

std::string_view without_spaces(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

bool names_a_card(std::string_view entry, int64_t cards) {
  if (entry.starts_with("GPU-")) return true;
  int64_t index = -1;
  const auto [end, error] = std::from_chars(entry.data(), entry.data() + entry.size(), index);
  return error == std::errc() && end == entry.data() + entry.size() && index >= 0 && index < cards;
}

}  // namespace

int64_t count_visible_cards(const std::filesystem::path& devices, const std::optional<std::string>& visible) {
  const int64_t cards = count_cards(devices);
  if (!visible) return cards;
  if (visible->starts_with("MIG-")) return std::min<int64_t>(cards, 1);
  std::set<std::string_view> named;
  for (std::string_view rest = *visible; !rest.empty();) {
    const std::string_view entry = rest.substr(0, rest.find(','));
    const std::string_view card = without_spaces(entry);
    if (!names_a_card(card, cards) || !named.insert(card).second) break;
    rest.remove_prefix(std::min(rest.size(), entry.size() + 1));
  }
  return std::min(cards, static_cast<int64_t>(named.size()));
}

int64_t count_visible_cards() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  return count_visible_cards("/dev", visible ? std::optional<std::string>(visible) : std::nullopt);
}

}  // namespace satune
