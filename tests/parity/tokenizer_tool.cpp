// What the parity tests ask a tokenizer, over standard input and output:
//   tokenizer_tool encode DIR   length-prefixed texts in, one line of ids for each out
//   tokenizer_tool decode DIR   one line of ids in, length-prefixed text out; "decode-skip" leaves out
//   specials tokenizer_tool info DIR     kind, size, bos, eos, load seconds, then special_id of each further
//   argument tokenizer_tool bench DIR    length-prefixed texts in; seconds of the fastest of 5 rounds,
//   tokens, load seconds
// A length prefix is the number of bytes in decimal and a newline.
#include <chrono>
#include <iostream>
#include <iterator>
#include <sstream>

#include "data/files/error.h"
#include "data/tokenizer.h"

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

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void encode(const Tokenizer& tokenizer) {
  std::string out;
  for (const std::string& text : read_texts()) {
    for (const int32_t id : tokenizer.encode(text)) out += std::to_string(id) + ' ';
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
    const auto start = std::chrono::steady_clock::now();
    for (const std::string& text : texts) tokens += tokenizer.encode(text).size();
    best = std::min(best, seconds_since(start));
  }
  std::cout << best << ' ' << tokens;
}

int run(const std::vector<std::string>& arguments) {
  const auto start = std::chrono::steady_clock::now();
  const auto tokenizer = load_tokenizer(arguments.at(1));
  const double load_seconds = seconds_since(start);
  const std::string& what = arguments.at(0);
  if (what == "encode") encode(*tokenizer);
  if (what == "decode" || what == "decode-skip") decode(*tokenizer, what == "decode-skip");
  if (what == "bench") bench(*tokenizer);
  if (what == "info") {
    std::cout << tokenizer->kind() << ' ' << tokenizer->vocab_size() << ' '
              << tokenizer->bos_id().value_or(-1) << ' ' << tokenizer->eos_id().value_or(-1) << ' '
              << load_seconds;
    for (size_t i = 2; i < arguments.size(); ++i) {
      std::cout << ' ' << tokenizer->special_id(arguments[i]).value_or(-1);
    }
  }
  std::cout << std::flush;
  return 0;
}

}  // namespace
}  // namespace satune

int main(int argc, char** argv) {
  try {
    return satune::run({argv + 1, argv + argc});
  } catch (const satune::BadInput& error) {
    std::cerr << error.what() << '\n';
    return satune::kExitBadInput;
  }
}
