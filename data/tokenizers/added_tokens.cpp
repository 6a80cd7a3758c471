#include "data/tokenizers/added_tokens.h"

#include <algorithm>

namespace satune {

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : tokens) {
    if (token.special || token.text.empty()) continue;
    by_first_byte_[static_cast<unsigned char>(token.text[0])].push_back(token);
    empty_ = false;
  }
  for (auto& list : by_first_byte_) {
    std::stable_sort(list.begin(), list.end(),
                     [](const AddedToken& a, const AddedToken& b) { return a.text.size() > b.text.size(); });
  }
}

const AddedToken* AddedTokenFinder::at(std::string_view text) const {
  for (const AddedToken& token : by_first_byte_[static_cast<unsigned char>(text[0])]) {
    if (text.starts_with(token.text)) return &token;
  }
  return nullptr;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::split(std::string_view text) const {
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t i = 0; !empty_ && i < text.size();) {
    const AddedToken* token = at(text.substr(i));
    if (token == nullptr) {
      ++i;
      continue;
    }
    if (i > done) parts.emplace_back(text.substr(done, i - done), std::nullopt);
    parts.emplace_back(text.substr(i, token->text.size()), token->id);
    done = i += token->text.size();
  }
  if (done < text.size()) parts.emplace_back(text.substr(done), std::nullopt);
  return parts;
}

}  // namespace satune
