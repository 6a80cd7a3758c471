#include "data/tokenizers/sentencepiece_bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "data/tokenizers/sentencepiece_model.h"

namespace satune {
namespace {

bool is_space_at(std::string_view text, size_t i) {
  return text.substr(i, kMetaSpace.size()) == kMetaSpace;
}

/// Where the word that begins at `begin` ends: before the first space that follows another character.
size_t word_end(std::string_view text, size_t begin) {
  size_t i = begin;
  while (i < text.size() && is_space_at(text, i)) i += kMetaSpace.size();
  while (i < text.size() && !is_space_at(text, i)) ++i;
  return i;
}

bool is_simple(const SentencePieceModel& model) {
  return model.model_type == SentencePieceModel::kBpe && model.byte_fallback &&
         !model.treat_whitespace_as_suffix && model.precompiled_charsmap.empty() &&
         !model.remove_extra_whitespaces && model.escape_whitespaces;
}

/// Ranks by score, the highest first; equal scores share a rank, so that the leftmost merges first.
std::vector<uint32_t> ranks_by_score(const std::vector<SentencePieceModel::Piece>& pieces) {
  std::vector<float> scores;
  for (const auto& piece : pieces) scores.push_back(piece.score);
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  std::vector<uint32_t> ranks;
  for (const auto& piece : pieces) {
    const auto place = std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<>());
    ranks.push_back(static_cast<uint32_t>(place - scores.begin()));
  }
  return ranks;
}

}  // namespace

std::unique_ptr<const SentencePieceBpe> SentencePieceBpe::make(std::string_view serialized_model) {
  const auto model = parse_sentencepiece_model(serialized_model);
  if (!model || !is_simple(*model)) return nullptr;
  std::unique_ptr<SentencePieceBpe> bpe(new SentencePieceBpe);
  std::array<int32_t, 256> bytes;
  bytes.fill(-1);
  for (size_t i = 0; i < model->pieces.size(); ++i) {
    const auto& piece = model->pieces[i];
    const auto id = static_cast<int32_t>(i);
    if (piece.type == SentencePieceModel::kNormal) {
      if (word_end(piece.text, 0) != piece.text.size() || !bpe->tokens_.add(id, piece.text)) return nullptr;
    } else if (piece.type == SentencePieceModel::kByte) {
      for (size_t byte = 0; byte < 256; ++byte) {
        if (piece.text == fmt::format("<0x{:02X}>", byte)) bytes[byte] = id;
      }
    } else if (piece.type != SentencePieceModel::kUnknown && piece.type != SentencePieceModel::kControl) {
      return nullptr;
    }
  }
  if (std::find(bytes.begin(), bytes.end(), -1) != bytes.end()) return nullptr;
  bpe->encoder_ = std::make_unique<BytePairEncoder>(bpe->tokens_, ranks_by_score(model->pieces), bytes);
  bpe->add_dummy_prefix_ = model->add_dummy_prefix;
  return bpe;
}

std::vector<int32_t> SentencePieceBpe::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  if (text.empty()) return ids;
  std::string escaped;
  escaped.reserve(text.size() + text.size() / 2 + 8);
  if (add_dummy_prefix_) escaped += kMetaSpace;
  for (const char c : text) {
    if (c == ' ') {
      escaped += kMetaSpace;
    } else {
      escaped += c;
    }
  }
  ids.reserve(text.size() / 3 + 8);
  for (size_t begin = 0; begin < escaped.size();) {
    const size_t end = word_end(escaped, begin);
    encoder_->encode(std::string_view(escaped).substr(begin, end - begin), ids);
    begin = end;
  }
  return ids;
}

}  // namespace satune
