// What the data room's tests share: a tokenizer whose every rule is visible, and files in a temporary folder.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/prompt_template.h"
#include "data/tokenizer.h"

namespace satune {

/// Ids: 0 unknown, 1 BOS, 2 EOS, 3.. special tokens, 100 + byte for bytes, 400.. merges (longest match from
/// the left, so that text encoded in two parts differs from text encoded in one).
class FakeTokenizer final : public Tokenizer {
 public:
  struct Options {
    std::optional<int32_t> bos = 1, eos = 2;
    std::vector<std::string> specials = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
    std::vector<std::string> merges = {"#\n", "\nY", "\nYes", "es", "the "};
    std::string version = "1";
    bool adds_bos = true;
  };
  FakeTokenizer() : FakeTokenizer(Options()) {}
  explicit FakeTokenizer(Options options) : options_(std::move(options)) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      size_t used = 1;
      int32_t id = 100 + static_cast<unsigned char>(text[0]);
      for (size_t i = 0; i < options_.merges.size(); ++i) {
        const std::string& merge = options_.merges[i];
        if (merge.size() > used && text.starts_with(merge)) {
          used = merge.size();
          id = 400 + static_cast<int32_t>(i);
        }
      }
      ids.push_back(id);
      text.remove_prefix(used);
    }
    return ids;
  }
  std::string decode(std::span<const int32_t> ids, bool skip_special) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (!(skip_special && id < 100)) text += token_text(id);
    }
    return text;
  }
  int32_t vocab_size() const override { return 400 + static_cast<int32_t>(options_.merges.size()); }
  std::optional<int32_t> bos_id() const override { return options_.bos; }
  bool adds_bos() const override { return options_.bos && options_.adds_bos; }
  std::optional<int32_t> eos_id() const override { return options_.eos; }
  std::optional<int32_t> special_id(std::string_view text) const override {
    if (text == "<s>") return bos_id();
    if (text == "</s>") return eos_id();
    for (size_t i = 0; i < options_.specials.size(); ++i) {
      if (options_.specials[i] == text) return 3 + static_cast<int32_t>(i);
    }
    return std::nullopt;
  }
  std::string token_text(int32_t id) const override {
    if (id >= 400) return options_.merges[static_cast<size_t>(id - 400)];
    if (id >= 100) return std::string(1, static_cast<char>(id - 100));
    if (id >= 3) return options_.specials[static_cast<size_t>(id - 3)];
    return id == 1 ? "<s>" : id == 2 ? "</s>" : "<unk>";
  }
  std::string_view kind() const override { return "bpe"; }
  std::string fingerprint() const override { return "fake " + options_.version; }

 private:
  Options options_;
};

/// The prompt is the instruction alone, so that lengths can be counted.
inline PromptTemplate bare_template() {
  return PromptTemplate("bare", {.prompt_with_input = "{instruction}{input}",
                                 .prompt_without_input = "{instruction}",
                                 .response_header = "",
                                 .response_suffix = "",
                                 .end_token = "",
                                 .special_tokens = {},
                                 .trim = false});
}

/// A JSONL record that FakeTokenizer and bare_template make 1 + prompt + response + 1 tokens of.
inline std::string line(size_t prompt, size_t response) {
  return fmt::format("{{\"instruction\":\"{}\",\"output\":\"{}\"}}\n", std::string(prompt, 'p'),
                     std::string(response, 'r'));
}

class DataTest : public ::testing::Test {
 protected:
  DataTest() {
    std::string name = (std::filesystem::temp_directory_path() / "satune_data_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    folder_ = name;
  }
  ~DataTest() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::filesystem::path write(const std::string& name, std::string_view text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }

  std::filesystem::path folder_;
};

/// The message of the exception of type E that `act` throws; a failure and "" when it throws none.
template <typename E, typename Act>
std::string message_of(const Act& act) {
  try {
    act();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

}  // namespace satune
