// A SentencePiece ModelProto read by hand: Debian's library ships without the header of its own messages.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace satune {

/// The fields of sentencepiece_model.proto that decide ids, with the defaults of that file.
struct SentencePieceModel {
  enum Type : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  static constexpr uint64_t kBpe = 2;

  struct Piece {
    std::string_view text;  // into the serialized model
    float score = 0;
    uint64_t type = kNormal;
  };
  std::vector<Piece> pieces;
  uint64_t model_type = 1;
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  std::string_view precompiled_charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

/// Views into `serialized`. Nothing when it is not well-formed.
std::optional<SentencePieceModel> parse_sentencepiece_model(std::string_view serialized);

}  // namespace satune
