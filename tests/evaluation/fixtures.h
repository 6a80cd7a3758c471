// A tokenizer of bytes and a small random model to measure.
#pragma once

#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "model/llama.h"
#include "tests/model_configs.h"

namespace satune {

/// ids 0 unk, 1 BOS, 2 EOS, 3 + byte. Invalid UTF-8 decodes to U+FFFD, a byte each, as far as the tests need.
class ByteTokenizer final : public Tokenizer {
 public:
  explicit ByteTokenizer(bool adds_bos = true) : adds_bos_(adds_bos) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(3 + static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const override {
    std::string bytes;
    for (const int32_t id : ids) {
      if (id >= 3) bytes += static_cast<char>(id - 3);
      if (id < 3 && !skip_special) bytes += token_text(id);
    }
    std::string text;
    for (size_t i = 0; i < bytes.size();) {
      const auto lead = static_cast<unsigned char>(bytes[i]);
      const size_t length = lead < 0x80 ? 1 : lead < 0xC0 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
      bool whole = length > 0 && i + length <= bytes.size();
      for (size_t k = 1; whole && k < length; ++k)
        whole = (static_cast<unsigned char>(bytes[i + k]) & 0xC0) == 0x80;
      text += whole ? bytes.substr(i, length) : "\xEF\xBF\xBD";
      i += whole ? length : 1;
    }
    return text;
  }
  int32_t vocab_size() const override { return 259; }
  std::optional<int32_t> bos_id() const override { return 1; }
  bool adds_bos() const override { return adds_bos_; }
  std::optional<int32_t> eos_id() const override { return 2; }
  std::optional<int32_t> special_id(std::string_view text) const override {
    for (int32_t id = 0; id < 3; ++id)
      if (token_text(id) == text) return id;
    return std::nullopt;
  }
  std::string token_text(int32_t id) const override {
    if (id >= 3) return std::string(1, static_cast<char>(id - 3));
    return id == 0 ? "<unk>" : id == 1 ? "<s>" : "</s>";
  }
  std::string_view kind() const override { return "sentencepiece"; }
  std::string fingerprint() const override { return "bytes"; }

 private:
  bool adds_bos_;
};

inline Llama byte_model(const std::string& sharing = "", at::ScalarType type = at::kFloat) {
  ModelConfig config = model_configs::config_of(
      {.vocabulary = 259, .hidden = 32, .ffn = 48, .layers = 4, .heads = 4, .kv_heads = 2, .head_dim = 8});
  config.max_position_embeddings = 256;
  config.sharing = sharing.empty() ? SharingPlan(4) : SharingPlan::parse(sharing, AnchorRule::kBefore, 4);
  Llama model(config, {}, type, at::kCPU);
  initialise_weights(model.weights(), 0.2, 11);
  return model;
}

}  // namespace satune
