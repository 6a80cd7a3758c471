#include "data/prompt_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <utility>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/fingerprint.h"
#include "data/template_file.h"
#include "data/utf8.h"

namespace satune {
namespace {

constexpr std::string_view kInstruction = "{instruction}";
constexpr std::string_view kInput = "{input}";
constexpr std::string_view kOutput = "{output}";

/// A stretch of text, or the text of one special token.
struct Segment {
  std::string text;
  bool special = false;
};

/// Which text each placeholder stands for; nothing = the placeholder is text like any other.
struct Fillings {
  std::optional<std::string_view> instruction, input, output;
};

std::optional<std::pair<std::string_view, std::string_view>> placeholder_at(std::string_view pattern,
                                                                            const Fillings& fillings) {
  const std::array<std::pair<std::string_view, std::optional<std::string_view>>, 3> all = {
      {{kInstruction, fillings.instruction}, {kInput, fillings.input}, {kOutput, fillings.output}}};
  for (const auto& [name, text] : all) {
    if (text && pattern.starts_with(name)) return std::pair(name, *text);
  }
  return std::nullopt;
}

std::string_view special_at(std::string_view pattern, const std::vector<std::string>& special_tokens) {
  std::string_view longest;
  for (const std::string& token : special_tokens) {
    if (token.size() > longest.size() && pattern.starts_with(token)) longest = token;
  }
  return longest;
}

/// The pattern from left to right, once: what a filling brings in is never looked at again, so a record
/// cannot bring a placeholder or a special token with it.
std::vector<Segment> fill(std::string_view pattern, const Fillings& fillings,
                          const std::vector<std::string>& special_tokens) {
  std::vector<Segment> segments;
  const auto append_text = [&](std::string_view text) {
    if (segments.empty() || segments.back().special) segments.push_back({});
    segments.back().text += text;
  };
  while (!pattern.empty()) {
    size_t used = 1;
    if (const auto placeholder = placeholder_at(pattern, fillings)) {
      append_text(placeholder->second);
      used = placeholder->first.size();
    } else if (const auto special = special_at(pattern, special_tokens); !special.empty()) {
      segments.push_back({std::string(special), true});
      used = special.size();
    } else {
      append_text(pattern.substr(0, 1));
    }
    pattern.remove_prefix(used);
  }
  return segments;
}

std::vector<Segment> prompt_segments(const TemplateStrings& strings, const Record& record) {
  const auto content = [&](std::string_view text) { return strings.trim ? trim_white_space(text) : text; };
  const std::string_view input = content(record.input);
  Fillings fillings{.instruction = content(record.instruction), .input = {}, .output = {}};
  if (!input.empty()) fillings.input = input;
  const std::string& body = input.empty() ? strings.prompt_without_input : strings.prompt_with_input;
  return fill(body + strings.response_header, fillings, strings.special_tokens);
}

int32_t special_token_id(const Tokenizer& tokenizer, const std::string& text,
                         const std::string& template_name) {
  const auto id = tokenizer.special_id(text);
  if (!id) {
    throw bad_input(fmt::format("template \"{}\"", template_name),
                    fmt::format("a {} tokenizer without the special token \"{}\"", tokenizer.kind(), text),
                    "a tokenizer that has it, or another template");
  }
  return *id;
}

void encode_segments(const std::vector<Segment>& segments, const Tokenizer& tokenizer,
                     const std::string& name, std::vector<int32_t>& tokens) {
  for (const Segment& segment : segments) {
    if (segment.special) {
      tokens.push_back(special_token_id(tokenizer, segment.text, name));
    } else if (!segment.text.empty()) {
      const std::vector<int32_t> ids = tokenizer.encode(segment.text);
      tokens.insert(tokens.end(), ids.begin(), ids.end());
    }
  }
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

void check_strings(const std::string& name, const TemplateStrings& strings) {
  const auto require = [&](bool holds, std::string_view key, std::string_view found,
                           std::string_view expected) {
    if (!holds) throw bad_input(fmt::format("template \"{}\", {}", name, key), found, expected);
  };
  const auto& [with_input, without_input, header, suffix, end, special_tokens, trim] = strings;
  require(contains(with_input, kInstruction), "prompt_with_input", "no {instruction}", "it in the text");
  require(contains(with_input, kInput), "prompt_with_input", "no {input}", "it in the text");
  require(contains(without_input, kInstruction), "prompt_without_input", "no {instruction}",
          "it in the text");
  require(!contains(without_input, kInput), "prompt_without_input", "{input}", "{instruction} only");
  for (const std::string& text : {with_input, without_input}) {
    require(!contains(text, kOutput), "prompt_*", "{output}",
            "the prompt only (the output follows by itself)");
  }
  for (const std::string_view placeholder : {kInstruction, kInput, kOutput}) {
    require(!contains(header, placeholder), "response_header", placeholder, "text without placeholders");
    require(!contains(suffix, placeholder), "response_suffix", placeholder, "text without placeholders");
  }
  for (const std::string& token : special_tokens) {
    require(!token.empty(), "special_tokens", "an empty string", "the text of a special token");
  }
}

/// Whether the tokenizer puts SentencePiece's dummy prefix (a space) before every text.
bool adds_dummy_prefix(const Tokenizer& tokenizer) {
  if (tokenizer.kind() != "sentencepiece") return false;
  const std::vector<int32_t> ids = tokenizer.encode("a");
  return !ids.empty() && tokenizer.token_text(ids.front()).starts_with(' ');
}

bool ends_with_special(std::string_view text, const std::vector<std::string>& special_tokens) {
  return std::any_of(special_tokens.begin(), special_tokens.end(),
                     [&](const std::string& token) { return text.ends_with(token); });
}

/// A Jinja string literal.
std::string jinja_literal(std::string_view text) {
  std::string literal = "'";
  for (const char c : text) {
    switch (c) {
      case '\n':
        literal += "\\n";
        break;
      case '\r':
        literal += "\\r";
        break;
      case '\t':
        literal += "\\t";
        break;
      case '\'':
        literal += "\\'";
        break;
      case '\\':
        literal += "\\\\";
        break;
      default:
        literal += c;
    }
  }
  return literal + "'";
}

/// The pattern as a Jinja expression in which `content` takes the place of {instruction}.
std::string jinja_prompt(std::string_view pattern) {
  std::string expression;
  const auto append = [&](const std::string& term) {
    expression += (expression.empty() ? "" : " ~ ") + term;
  };
  while (!pattern.empty()) {
    const size_t at = std::min(pattern.find(kInstruction), pattern.size());
    if (at > 0) append(jinja_literal(pattern.substr(0, at)));
    pattern.remove_prefix(at);
    if (pattern.empty()) break;
    append("content");
    pattern.remove_prefix(kInstruction.size());
  }
  return expression;
}

}  // namespace

PromptTemplate::PromptTemplate(std::string name, TemplateStrings strings)
    : name_(std::move(name)), strings_(std::move(strings)) {
  check_strings(name_, strings_);
}

PromptTemplate PromptTemplate::load(std::string_view name_or_path) {
  if (const auto strings = built_in_template(name_or_path))
    return PromptTemplate(std::string(name_or_path), *strings);
  std::error_code ignored;
  if (!std::filesystem::exists(std::filesystem::path(name_or_path), ignored)) {
    const std::vector<std::string> names = built_in_template_names();
    const std::string nearest = nearest_name(name_or_path, names);
    throw bad_input("template",
                    fmt::format("\"{}\"{}", name_or_path,
                                nearest.empty() ? "" : fmt::format(" (did you mean {}?)", nearest)),
                    fmt::format("{} or the path of a template file", fmt::join(names, ", ")));
  }
  return PromptTemplate(std::string(name_or_path), read_template_file(std::filesystem::path(name_or_path)));
}

std::string PromptTemplate::fingerprint() const {
  Sha256 hash;
  for (const std::string* text :
       {&strings_.prompt_with_input, &strings_.prompt_without_input, &strings_.response_header,
        &strings_.response_suffix, &strings_.end_token}) {
    hash.update_field(*text);
  }
  hash.update_field(strings_.special_tokens.size());
  for (const std::string& token : strings_.special_tokens) hash.update_field(token);
  hash.update_field(static_cast<uint64_t>(strings_.trim));
  return hash.hex();
}

void PromptTemplate::check(const Tokenizer& tokenizer) const {
  for (const std::string& token : strings_.special_tokens) special_token_id(tokenizer, token, name_);
  end_id(tokenizer);
}

int32_t PromptTemplate::end_id(const Tokenizer& tokenizer) const {
  if (!strings_.end_token.empty()) return special_token_id(tokenizer, strings_.end_token, name_);
  const auto eos = tokenizer.eos_id();
  if (!eos) {
    throw bad_input(fmt::format("template \"{}\"", name_),
                    fmt::format("a {} tokenizer without an EOS token", tokenizer.kind()),
                    "one that has it, or a template with an end_token: a response must end");
  }
  return *eos;
}

std::vector<int32_t> PromptTemplate::encode_prompt(const Record& record, const Tokenizer& tokenizer) const {
  std::vector<int32_t> tokens;
  encode_segments(prompt_segments(strings_, record), tokenizer, name_, tokens);
  const auto bos = tokenizer.bos_id();
  if (bos && (tokens.empty() || tokens.front() != *bos)) tokens.insert(tokens.begin(), *bos);
  return tokens;
}

EncodedSample PromptTemplate::encode(const Record& record, const Tokenizer& tokenizer) const {
  EncodedSample sample{encode_prompt(record, tokenizer), 0};
  sample.prompt_length = static_cast<int32_t>(sample.tokens.size());
  const std::string output = response_text(record);
  const Fillings fillings{.instruction = {}, .input = {}, .output = output};
  const std::string pattern = std::string(kOutput) + strings_.response_suffix;
  encode_segments(fill(pattern, fillings, strings_.special_tokens), tokenizer, name_, sample.tokens);
  sample.tokens.push_back(end_id(tokenizer));
  return sample;
}

std::string PromptTemplate::response_text(const Record& record) const {
  return std::string(strings_.trim ? trim_white_space(record.output) : record.output);
}

std::string PromptTemplate::prompt_text(const Record& record) const {
  std::string text;
  for (const Segment& segment : prompt_segments(strings_, record)) text += segment.text;
  return text;
}

std::string PromptTemplate::chat_template(const Tokenizer& tokenizer) const {
  const auto bos = tokenizer.bos_id();
  const std::string_view first = special_at(strings_.prompt_without_input, strings_.special_tokens);
  const bool emits_bos = !first.empty() && tokenizer.special_id(first) == bos;
  const std::string content = strings_.trim ? "message['content'] | trim" : "message['content']";
  const std::string end = strings_.end_token.empty() ? "eos_token" : jinja_literal(strings_.end_token);
  // In training a response is a text of its own, with a dummy prefix of its own. A renderer's text is one, so
  // the prefix is written out; after a special token the tokenizer adds it (see tokenizer_config.json:
  // legacy).
  const bool one_text =
      !ends_with_special(strings_.prompt_without_input + strings_.response_header, strings_.special_tokens);
  const char* response =
      one_text && adds_dummy_prefix(tokenizer) ? "(' ' ~ content if content else '')" : "content";
  std::string text;
  if (bos && !emits_bos) text += "{{- bos_token -}}\n";
  text += "{%- for message in messages -%}\n";
  text += fmt::format("{{%- set content = {} -%}}\n", content);
  text += "{%- if message['role'] == 'user' -%}\n";
  text += fmt::format("{{{{- {} -}}}}\n", jinja_prompt(strings_.prompt_without_input));
  text += "{%- elif message['role'] == 'assistant' -%}\n";
  text += fmt::format("{{{{- {} ~ {} ~ {} ~ {} -}}}}\n", jinja_literal(strings_.response_header), response,
                      jinja_literal(strings_.response_suffix), end);
  text += "{%- else -%}\n";
  text +=
      "{{- raise_exception('This model was trained on user and assistant messages only, not on: ' ~ "
      "message['role']) -}}\n";
  text += "{%- endif -%}\n{%- endfor -%}\n";
  text += fmt::format("{{%- if add_generation_prompt -%}}\n{{{{- {} -}}}}\n{{%- endif -%}}\n",
                      jinja_literal(strings_.response_header));
  return text;
}

std::vector<int32_t> encode_raw_prompt(std::string_view text, const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens;
  const auto bos = tokenizer.bos_id();
  if (bos && (text.empty() || tokenizer.adds_bos())) tokens.push_back(*bos);
  if (text.empty()) return tokens;
  const std::vector<int32_t> ids = tokenizer.encode(text);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  return tokens;
}

EncodedSample encode_document(std::string_view text, const Tokenizer& tokenizer) {
  EncodedSample sample{encode_raw_prompt(text, tokenizer), 1};
  const auto bos = tokenizer.bos_id();
  if (bos && !tokenizer.adds_bos() && !text.empty()) sample.tokens.insert(sample.tokens.begin(), *bos);
  if (const auto eos = tokenizer.eos_id()) sample.tokens.push_back(*eos);
  return sample;
}

}  // namespace satune
