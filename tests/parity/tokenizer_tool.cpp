// What the parity tests ask of tokenizers, over standard input and output. Texts go in and out with their
// number of bytes and a newline before them; ids and lengths stand in one line for each text.
//
//   tokenizer_tool encode DIR                 texts in, ids out
//   tokenizer_tool raw DIR                    the same, as prompts: after BOS where the tokenizer adds it
//   tokenizer_tool decode|decode-skip DIR     ids in, texts out, with or without special tokens
//   tokenizer_tool info DIR [TOKEN...]        kind, size, bos, eos, seconds of loading, id of each TOKEN
//   tokenizer_tool bench DIR                  texts in; CPU seconds of the fastest of 5 rounds, tokens
//   tokenizer_tool records DIR TEMPLATE FILE  for each record the prompt's length and the ids trained
//   tokenizer_tool chat-template DIR TEMPLATE chat_template.jinja of an export
//   tokenizer_tool split JSON                 texts in; bytes of each word that this pre_tokenizer makes
//   tokenizer_tool classes                    a digit for each code point: 1 letter, 2 number, 3 space, 0
//   tokenizer_tool train DIR VOCAB_SIZE       texts in; trains a SentencePiece tokenizer
#include <ctime>
#include <iostream>
#include <iterator>
#include <sstream>

#include "data/files/error.h"
#include "data/prompt_template.h"
#include "data/records.h"
#include "data/tokenizer.h"
#include "data/tokenizers/pre_tokenizer.h"
#include "data/tokenizers/unicode_classes.h"

namespace satune {
namespace {

std::vector<std::string> read_texts() {
  const std::string all{std::istreambuf_iterator<char>(std::cin), {}};
  std::vector<std::string> texts;
  for (size_t i = 0; i < all.size();) {
    const size_t newline = all.find('\n', i);
    const size_t size = std::stoul(all.substr(i, newline - i));
    texts.push_back(all.substr(newline + 1, size));
    i = newline + 1 + size;
  }
  return texts;
}

/// CPU time: what a busy machine does not change.
double cpu_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

void encode(const Tokenizer& tokenizer, bool raw) {
  std::string out;
  for (const std::string& text : read_texts()) {
    for (const int32_t id : raw ? encode_raw_prompt(text, tokenizer) : tokenizer.encode(text))
      out += std::to_string(id) + ' ';
    out += '\n';
  }
  std::cout << out;
}

void decode(const Tokenizer& tokenizer, bool skip_special) {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream stream(line);
    const std::vector<int32_t> ids{std::istream_iterator<int32_t>(stream), {}};
    const std::string text = tokenizer.decode(ids, skip_special);
    std::cout << text.size() << '\n' << text;
  }
}

void bench(const Tokenizer& tokenizer) {
  const std::vector<std::string> texts = read_texts();
  double best = 1e9;
  size_t tokens = 0;
  for (int round = 0; round < 5; ++round) {
    tokens = 0;
    const double start = cpu_seconds();
    for (const std::string& text : texts) tokens += tokenizer.encode(text).size();
    best = std::min(best, cpu_seconds() - start);
  }
  std::cout << best << ' ' << tokens;
}

void info(const Tokenizer& tokenizer, double load_seconds, std::span<const std::string> tokens) {
  std::cout << tokenizer.kind() << ' ' << tokenizer.vocab_size() << ' ' << tokenizer.bos_id().value_or(-1)
            << ' ' << tokenizer.eos_id().value_or(-1) << ' ' << load_seconds;
  for (const std::string& token : tokens) std::cout << ' ' << tokenizer.special_id(token).value_or(-1);
}

void split(const std::string& json) {
  const PreTokenizer pre_tokenizer(nlohmann::json::parse(json), "pre_tokenizer");
  for (const std::string& text : read_texts()) {
    for (const std::string_view word : pre_tokenizer.split(text).views) std::cout << word.size() << ' ';
    std::cout << '\n';
  }
}

void classes() {
  std::string digits(0x110000, '0');
  for (char32_t c = 0; c < digits.size(); ++c) digits[c] += static_cast<char>(classify(c));
  std::cout << digits;
}

void records(const Tokenizer& tokenizer, const PromptTemplate& prompt_template, const std::string& file) {
  for (const Record& record : read_alpaca(file)) {
    const EncodedSample sample = prompt_template.encode(record, tokenizer);
    std::cout << sample.prompt_length;
    for (const int32_t id : sample.tokens) std::cout << ' ' << id;
    std::cout << '\n';
  }
}

void run(std::span<const std::string> arguments) {
  const std::string& what = arguments[0];
  if (what == "classes") return classes();
  if (what == "split") return split(arguments[1]);
  if (what == "train") {
    return train_sentencepiece(read_texts(), {.vocab_size = std::stoi(arguments[2])}, arguments[1]);
  }
  const double start = cpu_seconds();
  const auto tokenizer = load_tokenizer(arguments[1]);
  const double load_seconds = cpu_seconds() - start;
  if (what == "encode" || what == "raw") encode(*tokenizer, what == "raw");
  if (what == "decode" || what == "decode-skip") decode(*tokenizer, what == "decode-skip");
  if (what == "bench") bench(*tokenizer);
  if (what == "records") records(*tokenizer, PromptTemplate::load(arguments[2]), arguments[3]);
  if (what == "chat-template") std::cout << PromptTemplate::load(arguments[2]).chat_template(*tokenizer);
  if (what == "info") info(*tokenizer, load_seconds, arguments.subspan(2));
}

}  // namespace
}  // namespace satune

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> arguments(argv + 1, argv + argc);
    if (arguments.size() < (arguments.empty() || arguments[0] != "classes" ? 2u : 1u))
      return satune::kExitBadInput;
    satune::run(arguments);
    return satune::kExitOk;
  } catch (const satune::BadInput& error) {
    std::cerr << error.what() << '\n';
    return satune::kExitBadInput;
  }
}
