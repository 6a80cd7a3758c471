#include "data/tokenizers/tokenizer_json_contents.h"

#include "data/files/error.h"

namespace satune {
namespace {

using nlohmann::json;

/// Receives nlohmann's parse events. A tree of the hundred thousands of strings in the two tables would cost
/// several times the parsing itself.
class ContentsReader final : public nlohmann::json_sax<json> {
 public:
  ContentsReader(std::string path, TokenizerJsonContents& contents)
      : path_(std::move(path)), contents_(contents) {}

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return value(v); }
  bool number_unsigned(number_unsigned_t v) override { return table_ == kVocab ? token_id(v) : value(v); }
  bool number_float(number_float_t v, const string_t&) override { return value(v); }
  bool binary(binary_t&) override { return false; }
  bool string(string_t& v) override { return table_ == kMerges ? merge_part(v) : value(std::move(v)); }

  bool key(string_t& v) override {
    key_ = std::move(v);
    return true;
  }

  bool start_object(std::size_t) override {
    if (table_ != kNone) return wrong_form();
    if (is_model_table("vocab")) {
      table_ = kVocab;
      return true;
    }
    return open(json::object());
  }

  bool start_array(std::size_t) override {
    if (table_ == kMerges && !in_pair_) {
      in_pair_ = true;
      return true;
    }
    if (table_ != kNone) return wrong_form();
    if (is_model_table("merges")) {
      table_ = kMerges;
      return true;
    }
    return open(json::array());
  }

  bool end_object() override { return close(); }

  bool end_array() override {
    if (!in_pair_) return close();
    if (pair_.size() != 2) return wrong_form();
    contents_.merges.emplace_back(std::move(pair_[0]), std::move(pair_[1]));
    pair_.clear();
    in_pair_ = false;
    return true;
  }

  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    const std::string_view message = error.what();
    throw bad_input(path_, fmt::format("no JSON ({})", message.substr(message.find("] ") + 2)),
                    "a tokenizer");
  }

 private:
  enum Table { kNone, kVocab, kMerges };

  bool is_model_table(std::string_view name) const {
    return keys_.size() == 2 && keys_[1] == "model" && key_ == name;
  }

  bool wrong_form() const {
    if (table_ == kVocab) throw bad_input(path_ + ": model.vocab." + key_, "something else", "a token id");
    throw bad_input(fmt::format("{}: model.merges[{}]", path_, contents_.merges.size()), "something else",
                    "\"left right\" or [\"left\", \"right\"]");
  }

  bool token_id(number_unsigned_t id) {
    if (id > 1 << 24) return wrong_form();
    contents_.vocab.emplace_back(std::move(key_), static_cast<int32_t>(id));
    return true;
  }

  bool merge_part(string_t& text) {
    if (in_pair_) {
      pair_.push_back(std::move(text));
      return true;
    }
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      throw bad_input(fmt::format("{}: model.merges[{}]", path_, contents_.merges.size()),
                      fmt::format("\"{}\"", text), "two tokens with one space between them");
    }
    contents_.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    return true;
  }

  json& place(json v) {
    if (stack_.empty()) return contents_.rest = std::move(v);
    if (stack_.back()->is_array()) return stack_.back()->emplace_back(std::move(v));
    return (*stack_.back())[key_] = std::move(v);
  }

  bool value(json v) {
    if (table_ != kNone) return wrong_form();
    place(std::move(v));
    return true;
  }

  bool open(json container) {
    keys_.push_back(stack_.empty() || stack_.back()->is_array() ? std::string() : key_);
    stack_.push_back(&place(std::move(container)));
    return true;
  }

  bool close() {
    if (table_ != kNone) {
      table_ = kNone;
    } else {
      stack_.pop_back();
      keys_.pop_back();
    }
    return true;
  }

  std::string path_;
  TokenizerJsonContents& contents_;
  std::vector<json*> stack_;       // open containers; children are added to the last one only
  std::vector<std::string> keys_;  // the key that each of them stands under
  std::string key_;
  Table table_ = kNone;
  bool in_pair_ = false;
  std::vector<std::string> pair_;
};

}  // namespace

TokenizerJsonContents read_tokenizer_json_contents(const std::string& path, std::string_view text) {
  TokenizerJsonContents contents;
  ContentsReader reader(path, contents);
  json::sax_parse(text.data(), text.data() + text.size(), &reader);
  return contents;
}

}  // namespace satune
