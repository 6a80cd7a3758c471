#include "data/tokenizers/sentencepiece_tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <map>

#include "data/files/error.h"
#include "data/tokenizers/code_points.h"
#include "data/tokenizers/sentencepiece_bpe.h"
#include "data/utf8.h"

namespace satune {
namespace {

/// "<0x0A>" -> "\n".
char byte_of_piece(const std::string& piece) {
  return static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16));
}

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (size_t i = 0; i < piece.size();) {
    if (piece.substr(i, kMetaSpace.size()) == kMetaSpace) {
      text += ' ';
      i += kMetaSpace.size();
    } else {
      text += piece[i++];
    }
  }
  return text;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::filesystem::path& path, std::string_view model,
                         const SpecialTokens& special_tokens);

  std::vector<int32_t> encode(std::string_view text) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special) const override;
  int32_t vocab_size() const override { return vocab_size_; }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  bool adds_bos() const override { return bos_ && add_bos_; }
  std::optional<int32_t> special_id(std::string_view text) const override;
  std::string token_text(int32_t id) const override;
  std::string_view kind() const override { return "sentencepiece"; }
  std::string fingerprint() const override { return fingerprint_; }

 private:
  bool is_piece(int32_t id) const { return id >= 0 && id < pieces_; }
  const AddedToken* added_token(int32_t id) const;
  std::optional<int32_t> resolve(const TokenSetting& setting, int from_model) const;

  sentencepiece::SentencePieceProcessor processor_;
  std::unique_ptr<const SentencePieceBpe> fast_;  // null for models that only the library encodes
  int32_t pieces_ = 0;
  int32_t vocab_size_ = 0;
  int32_t invisible_ = -1;         // a control piece, which Decode turns into nothing
  std::vector<AddedToken> added_;  // beyond the pieces, by id
  std::map<std::string, int32_t, std::less<>> specials_;
  std::optional<int32_t> bos_, eos_;
  bool add_bos_;
  std::string fingerprint_;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::filesystem::path& path, std::string_view model,
                                               const SpecialTokens& special_tokens)
    : add_bos_(special_tokens.add_bos.value_or(true)) {
  const auto status = processor_.LoadFromSerializedProto(model);
  if (!status.ok()) {
    throw bad_input(
        path.string(),
        fmt::format("{} bytes that sentencepiece refuses ({})", model.size(), status.error_message()),
        "a SentencePiece model");
  }
  fast_ = SentencePieceBpe::make(model);
  pieces_ = processor_.GetPieceSize();
  vocab_size_ = pieces_;
  for (int32_t id = 0; id < pieces_; ++id) {
    const bool control = processor_.IsControl(id);
    if (control && invisible_ < 0) invisible_ = id;
    if (control || processor_.IsUnknown(id)) specials_.emplace(processor_.IdToPiece(id), id);
  }
  for (const AddedToken& token : special_tokens.added) {
    if (token.special) specials_.emplace(token.text, token.id);
    if (token.id >= pieces_) added_.push_back(token);
    vocab_size_ = std::max(vocab_size_, token.id + 1);
  }
  bos_ = resolve(special_tokens.bos, processor_.bos_id());
  eos_ = resolve(special_tokens.eos, processor_.eos_id());
  if (special_tokens.first && special_tokens.first != bos_) add_bos_ = false;
  fingerprint_ = content_fingerprint("sentencepiece", model, special_tokens.added);
}

std::optional<int32_t> SentencePieceTokenizer::resolve(const TokenSetting& setting, int from_model) const {
  if (!setting.given) return from_model >= 0 ? std::optional<int32_t>(from_model) : std::nullopt;
  if (!setting.text) return std::nullopt;
  const auto found = specials_.find(*setting.text);
  if (found != specials_.end()) return found->second;
  const int id = processor_.PieceToId(*setting.text);
  if (processor_.IdToPiece(id) == *setting.text) return id;
  throw bad_input(setting.source, "\"" + *setting.text + "\"", "a token of tokenizer.model");
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  std::string repaired;
  if (find_invalid_utf8(text)) text = repaired = replace_invalid_utf8(text);
  if (fast_) return fast_->encode(text);
  std::vector<int32_t> ids;
  const auto status = processor_.Encode(text, &ids);
  if (!status.ok()) throw std::runtime_error("sentencepiece: " + status.ToString());
  return ids;
}

const AddedToken* SentencePieceTokenizer::added_token(int32_t id) const {
  const auto found =
      std::lower_bound(added_.begin(), added_.end(), id,
                       [](const AddedToken& token, int32_t wanted) { return token.id < wanted; });
  return found != added_.end() && found->id == id ? &*found : nullptr;
}

std::string SentencePieceTokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::vector<int> pieces;               // what sentencepiece decodes
  std::vector<std::string_view> extras;  // what is put before each of them
  std::vector<int32_t> shown;
  for (const int32_t id : ids) {
    const AddedToken* added = added_token(id);
    if (!is_piece(id) && added == nullptr) continue;
    if (added != nullptr && (invisible_ < 0 || (skip_special && added->special))) continue;
    pieces.push_back(added != nullptr ? invisible_ : id);
    shown.push_back(id);
  }
  const auto proto = processor_.DecodeIdsAsImmutableProto(pieces);
  if (proto.pieces_size() != pieces.size()) throw std::runtime_error("sentencepiece: Decode failed");
  std::string text;
  for (size_t i = 0; i < shown.size(); ++i) {
    if (const AddedToken* added = added_token(shown[i])) {
      text += added->text;
    } else if (!skip_special && processor_.IsControl(shown[i])) {
      text += processor_.IdToPiece(shown[i]);
    } else {
      text += proto.pieces(static_cast<int>(i)).surface();
    }
  }
  return text;
}

std::optional<int32_t> SentencePieceTokenizer::special_id(std::string_view text) const {
  const auto found = specials_.find(text);
  return found == specials_.end() ? std::nullopt : std::optional<int32_t>(found->second);
}

std::string SentencePieceTokenizer::token_text(int32_t id) const {
  if (const AddedToken* added = added_token(id)) return added->text;
  if (!is_piece(id)) return "";
  const std::string& piece = processor_.IdToPiece(id);
  if (processor_.IsByte(id)) return std::string(1, byte_of_piece(piece));
  if (processor_.IsControl(id) || processor_.IsUnknown(id)) return piece;
  return with_spaces(piece);
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(const std::filesystem::path& path,
                                                        std::string_view model,
                                                        const SpecialTokens& special_tokens) {
  return std::make_unique<SentencePieceTokenizer>(path, model, special_tokens);
}

}  // namespace satune
