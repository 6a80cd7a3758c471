#include "data/tokenizers/pre_tokenizer.h"

#include <fmt/format.h>

#include "data/files/error.h"
#include "data/tokenizers/code_points.h"
#include "data/tokenizers/json_access.h"
#include "data/tokenizers/llama3_scanner.h"
#include "data/tokenizers/regex_splitter.h"
#include "data/tokenizers/unicode_classes.h"

namespace satune {
namespace {

class Llama3Step final : public PreTokenizerStep {
 public:
  void split(std::string_view word, Words& out) const override { split_llama3(word, out.views); }
};

class RegexStep final : public PreTokenizerStep {
 public:
  RegexStep(RegexSplitter splitter, bool keep_matches, bool keep_rest)
      : splitter_(std::move(splitter)), keep_matches_(keep_matches), keep_rest_(keep_rest) {}
  void split(std::string_view word, Words& out) const override {
    for (const auto& [stretch, is_match] : splitter_.split(word)) {
      if (is_match ? keep_matches_ : keep_rest_) out.views.push_back(stretch);
    }
  }

 private:
  RegexSplitter splitter_;
  bool keep_matches_, keep_rest_;
};

/// Cuts between digits and the rest; with `individual` also between digits.
class DigitsStep final : public PreTokenizerStep {
 public:
  explicit DigitsStep(bool individual) : individual_(individual) {}
  void split(std::string_view word, Words& out) const override {
    size_t begin = 0;
    bool digits = false;
    for (size_t i = 0; i < word.size();) {
      const CodePoint point = code_point_at(word, i);
      const bool digit = is_digit(point.value);
      if (i > begin && (digit != digits || (digit && individual_))) {
        out.views.push_back(word.substr(begin, i - begin));
        begin = i;
      }
      digits = digit;
      i += point.length;
    }
    if (begin < word.size()) out.views.push_back(word.substr(begin));
  }

 private:
  bool individual_;
};

class PrefixSpaceStep final : public PreTokenizerStep {
 public:
  void split(std::string_view word, Words& out) const override {
    if (word.starts_with(' ')) {
      out.views.push_back(word);
    } else {
      out.views.push_back(out.owned.emplace_back(std::string(1, ' ').append(word)));
    }
  }
};

std::unique_ptr<const PreTokenizerStep> make_split(const nlohmann::json& value, const std::string& where) {
  const nlohmann::json& pattern = member(value, "pattern", where);
  const bool literal = pattern.is_object() && pattern.contains("String");
  const std::string text = string_member(pattern, literal ? "String" : "Regex", where + ".pattern");
  const std::string behavior = string_member(value, "behavior", where);
  const bool invert = bool_member(value, "invert", where, false);
  if (behavior != "Isolated" && behavior != "Removed") {
    throw bad_input(where + ".behavior", "\"" + behavior + "\"", "\"Isolated\" or \"Removed\"");
  }
  const bool isolated = behavior == "Isolated";
  if (!literal && isolated && text == kLlama3Pattern) return std::make_unique<Llama3Step>();
  RegexSplitter splitter(text, literal ? RegexSplitter::Syntax::kLiteral : RegexSplitter::Syntax::kRegex,
                         where + ".pattern");
  return std::make_unique<RegexStep>(std::move(splitter), isolated || invert, isolated || !invert);
}

}  // namespace

PreTokenizer PreTokenizer::llama3() {
  PreTokenizer result;
  result.steps_.push_back(std::make_unique<Llama3Step>());
  return result;
}

PreTokenizer::PreTokenizer(const nlohmann::json& value, const std::string& where) {
  if (value.is_object() && value.value("type", "") == "Sequence") {
    const nlohmann::json& list = member(value, "pretokenizers", where);
    if (!list.is_array()) throw bad_input(where + ".pretokenizers", list.type_name(), "an array");
    for (size_t i = 0; i < list.size(); ++i) {
      add_step(list[i], fmt::format("{}.pretokenizers[{}]", where, i));
    }
  } else {
    add_step(value, where);
  }
  if (!byte_level_) throw bad_input(where, "no ByteLevel", "a byte-level pre-tokenizer");
}

void PreTokenizer::add_step(const nlohmann::json& value, const std::string& where) {
  const std::string type = value.is_object() ? string_member(value, "type", where) : value.type_name();
  if (byte_level_) throw bad_input(where, type + " after ByteLevel", "ByteLevel as the last step");
  if (type == "Split") {
    steps_.push_back(make_split(value, where));
  } else if (type == "Digits") {
    steps_.push_back(std::make_unique<DigitsStep>(bool_member(value, "individual_digits", where, false)));
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    if (bool_member(value, "add_prefix_space", where, true))
      steps_.push_back(std::make_unique<PrefixSpaceStep>());
    if (bool_member(value, "use_regex", where, true)) {
      RegexSplitter splitter(kGpt2Pattern, RegexSplitter::Syntax::kRegex, where);
      steps_.push_back(std::make_unique<RegexStep>(std::move(splitter), true, true));
    }
  } else {
    throw bad_input(where, type, "Split, Digits, ByteLevel or a Sequence of them");
  }
}

Words PreTokenizer::split(std::string_view text) const {
  Words words;
  words.views.reserve(text.size() / 4 + 8);
  if (steps_.size() == 1) {
    steps_.front()->split(text, words);
    return words;
  }
  words.views.push_back(text);
  for (const auto& step : steps_) {
    Words next;
    next.owned = std::move(words.owned);
    for (const std::string_view word : words.views) step->split(word, next);
    words = std::move(next);
  }
  return words;
}

}  // namespace satune
