#include "data/tokenizers/sentencepiece_model.h"

#include <cstring>

namespace satune {
namespace {

struct Field {
  uint64_t number = 0;
  uint64_t value = 0;      // a varint
  std::string_view bytes;  // a message, a string, or the four or eight bytes of a fixed number
};

/// Takes fields from the front of a message (the protocol buffers wire format).
class Fields {
 public:
  explicit Fields(std::string_view message) : rest_(message) {}

  bool failed() const { return failed_; }

  /// False at the end and at the first malformed field.
  bool next(Field& field) {
    if (rest_.empty() || failed_) return false;
    const uint64_t tag = varint();
    field = {tag >> 3, 0, {}};
    switch (tag & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.bytes = take(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        field.bytes = take(4);
        break;
      default:
        failed_ = true;
    }
    return !failed_;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) break;
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    failed_ = true;
    return 0;
  }

  std::string_view take(uint64_t size) {
    if (size > rest_.size()) failed_ = true;
    if (failed_) return {};
    const std::string_view bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return bytes;
  }

  std::string_view rest_;
  bool failed_ = false;
};

bool parse_piece(std::string_view message, SentencePieceModel::Piece& piece) {
  Fields fields(message);
  for (Field field; fields.next(field);) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2 && field.bytes.size() == 4) std::memcpy(&piece.score, field.bytes.data(), 4);
    if (field.number == 3) piece.type = field.value;
  }
  return !fields.failed();
}

bool parse_trainer_spec(std::string_view message, SentencePieceModel& model) {
  Fields fields(message);
  for (Field field; fields.next(field);) {
    if (field.number == 3) model.model_type = field.value;
    if (field.number == 24) model.treat_whitespace_as_suffix = field.value != 0;
    if (field.number == 35) model.byte_fallback = field.value != 0;
  }
  return !fields.failed();
}

bool parse_normalizer_spec(std::string_view message, SentencePieceModel& model) {
  Fields fields(message);
  for (Field field; fields.next(field);) {
    if (field.number == 2) model.precompiled_charsmap = field.bytes;
    if (field.number == 3) model.add_dummy_prefix = field.value != 0;
    if (field.number == 4) model.remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) model.escape_whitespaces = field.value != 0;
  }
  return !fields.failed();
}

}  // namespace

std::optional<SentencePieceModel> parse_sentencepiece_model(std::string_view serialized) {
  SentencePieceModel model;
  Fields fields(serialized);
  bool good = true;
  for (Field field; good && fields.next(field);) {
    if (field.number == 1) good = parse_piece(field.bytes, model.pieces.emplace_back());
    if (field.number == 2) good = parse_trainer_spec(field.bytes, model);
    if (field.number == 3) good = parse_normalizer_spec(field.bytes, model);
  }
  if (!good || fields.failed()) return std::nullopt;
  return model;
}

}  // namespace satune
