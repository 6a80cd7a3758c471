#include "evaluation/wikitext.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "data/prompt_template.h"
#include "data/utf8.h"
#include "evaluation/benchmark_files.h"
#include "evaluation/data_rows.h"
#include "evaluation/log_likelihood.h"
#include "evaluation/perplexity_windows.h"
#include "evaluation/records.h"
#include "evaluation/sums.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

/// Takes the white space out that stands beside `open` and `close`, pair by pair.
std::string trim_between(std::string_view text, char open, char close) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t begin = text.find(open, at),
                 end = begin == std::string_view::npos ? begin : text.find(close, begin + 1);
    if (end == std::string_view::npos) return out.append(text.substr(at));
    out.append(text.substr(at, begin + 1 - at));
    out.append(trim_white_space(text.substr(begin + 1, end - begin - 1)));
    out += close;
    at = end + 1;
  }
}

/// lm-eval means to close up "' 7" here; its pattern has the slashes of another language in it.
std::string mend_slashed_number(std::string text) {
  constexpr std::string_view kMended = "/'[0-9]/";
  for (size_t at = 0; (at = text.find("/' ", at)) != std::string::npos;) {
    const bool found =
        at + 4 < text.size() && text[at + 3] >= '0' && text[at + 3] <= '9' && text[at + 4] == '/';
    if (found) text.replace(at, 5, kMended);
    at += found ? kMended.size() : 1;
  }
  return text;
}

bool begins_article(std::string_view line) {
  const std::string closed = replace_all(replace_all(std::string(line), "= = =", "==="), "= =", "==");
  const std::string_view heading = trim_white_space(closed);
  return heading.starts_with("= ") && heading.ends_with(" =");
}

struct PageSize {
  int64_t words, bytes;
};

class Wikitext final : public Task {
 public:
  Wikitext(const std::vector<std::string>& pages, const TaskOptions& options, const Tokenizer& tokenizer)
      : options_(options) {
    const std::optional<int32_t> first = first_context_token(tokenizer);
    if (!first) throw bad_input("wikitext", "a tokenizer without BOS and EOS", "one of the two");
    for (const std::string& page : pages) {
      std::vector<int32_t> tokens = encode_raw_prompt(detokenize_wikitext(page), tokenizer);
      tokens.insert(tokens.begin(), *first);
      add_windows(tokens);
      sizes_.push_back({count_white_space_runs(page) + 1, static_cast<int64_t>(page.size())});
    }
  }

  int64_t items() const override { return static_cast<int64_t>(windows_.size()); }

  void run(Llama& model, const std::vector<int64_t>& items, const ItemSink& done) const override {
    for (const auto& pass : plan_scoring(windows_, items, options_.batch_size, options_.batch_tokens,
                                         worth_sharing(model.weights().device()))) {
      std::vector<const ScoredSequence*> sequences;
      for (const int64_t item : pass) sequences.push_back(&windows_[item].front());
      const Scores scores = score_sequences(model, sequences);
      int64_t tokens = scores.tokens;  // of the pass: the first of its items counts them
      for (size_t i = 0; i < pass.size(); ++i)
        done({pass[i],
              {{"page", pages_[pass[i]]},
               {"log_likelihood", scores.log_likelihoods[i]},
               {"tokens", sequences[i]->targets},
               // Of the whole page, for paired tests.
               {"words", sizes_[static_cast<size_t>(pages_[pass[i]])].words},
               {"bytes", sizes_[static_cast<size_t>(pages_[pass[i]])].bytes}},
              std::exchange(tokens, 0)});
    }
  }

  Json metrics(const std::vector<Json>& results) const override {
    std::vector<double> losses(sizes_.size());
    for (size_t i = 0; i < results.size(); ++i)
      losses[static_cast<size_t>(pages_[i])] -= results[i]["log_likelihood"].get<double>();
    RatioSums by_word, by_byte;
    for (size_t page = 0; page < losses.size(); ++page) {
      by_word.add(losses[page], static_cast<double>(sizes_[page].words));
      by_byte.add(losses[page], static_cast<double>(sizes_[page].bytes));
    }
    Json json;
    const auto add = [&](const char* key, double value, const RatioSums& sums, double slope) {
      std::optional<double> error = sums.standard_error();
      if (error) *error *= slope;
      add_metric(json, key, value, error);
    };
    const double word = std::exp(by_word.ratio()), byte = std::exp(by_byte.ratio());
    add("word_perplexity", word, by_word, word);
    add("byte_perplexity", byte, by_byte, byte);
    add("bits_per_byte", by_byte.ratio() / std::log(2.0), by_byte, 1 / std::log(2.0));
    json["n"] = sizes_.size();
    json["windows"] = windows_.size();
    return json;
  }

  Json result_form(int64_t /*item*/) const override { return {{"log_likelihood", 0}}; }

  std::string fingerprint() const override {
    TaskFingerprint fingerprint("wikitext");
    for (size_t i = 0; i < windows_.size(); ++i) {
      const ScoredSequence& window = windows_[i].front();
      fingerprint.add(window.tokens, static_cast<int64_t>(window.tokens.size()) - window.targets);
      fingerprint.add(fmt::format("page {}", pages_[i]));
    }
    return fingerprint.hex();
  }

 private:
  void add_windows(const std::vector<int32_t>& tokens) {
    const auto page = static_cast<int64_t>(sizes_.size()), length = options_.max_positions;
    for (const PerplexityWindow& window :
         perplexity_windows(static_cast<int64_t>(tokens.size()), length, length)) {
      ScoredSequence sequence;
      sequence.tokens.assign(tokens.begin() + window.begin, tokens.begin() + window.end + 1);
      sequence.targets = window.end - window.first_counted;
      windows_.push_back({std::move(sequence)});
      pages_.push_back(page);
    }
  }

  TaskOptions options_;
  std::vector<PageSize> sizes_;                       ///< by page
  std::vector<std::vector<ScoredSequence>> windows_;  ///< one sequence each
  std::vector<int64_t> pages_;                        ///< by window
};

fs::path find_pages(const fs::path& data) {
  if (!fs::is_directory(data)) return data;
  for (const char* name : {"wiki.test.raw", "wiki.test.tokens"})
    if (fs::exists(data / name)) return data / name;
  fs::path rows = find_data_file(data, {"test"});
  if (rows.empty())
    throw bad_input(data.string(), "no file of wikitext", "wiki.test.raw, wiki.test.tokens or test.jsonl");
  return rows;
}

std::vector<std::string> read_pages(const fs::path& file) {
  const std::string ending = file.extension().string();
  if (ending == ".raw" || ending == ".tokens" || ending == ".txt") {
    const std::string text = read_text_file(file);
    if (const auto at = find_invalid_utf8(text))
      throw bad_input(file.string(), fmt::format("no UTF-8 at byte {}", *at), "a text in UTF-8");
    return split_wikitext(text);
  }
  std::vector<std::string> pages;
  for (const DataRow& row : read_data_rows(file)) pages.push_back(string_field(row, "page"));
  return pages;
}

}  // namespace

std::string detokenize_wikitext(std::string_view page) {
  std::string text = mend_slashed_number(replace_all(std::string(page), "s '", "s'"));
  for (const auto& [from, to] : {std::pair(" @-@ ", "-"),
                                 {" @,@ ", ","},
                                 {" @.@ ", "."},
                                 {" : ", ": "},
                                 {" ; ", "; "},
                                 {" . ", ". "},
                                 {" ! ", "! "},
                                 {" ? ", "? "},
                                 {" , ", ", "}})
    text = replace_all(std::move(text), from, to);
  for (const auto& [open, close] : {std::pair('(', ')'), {'[', ']'}, {'{', '}'}, {'"', '"'}, {'\'', '\''}})
    text = trim_between(text, open, close);
  for (const auto& [from, to] : {std::pair("= = = =", "===="),
                                 {"= = =", "==="},
                                 {"= =", "=="},
                                 {" \u00b0 ", "\u00b0"},
                                 {" \n", "\n"},
                                 {"\n ", "\n"},
                                 {" N ", " 1 "},
                                 {" 's", "'s"}})
    text = replace_all(std::move(text), from, to);
  return text;
}

std::vector<std::string> split_wikitext(std::string_view text) {
  std::vector<std::string> pages;
  size_t begin = 0;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (at > begin && begins_article(text.substr(at, end - at))) {
      const std::string_view page = text.substr(begin, at - 1 - begin);  // without the line's end
      if (!trim_white_space(page).empty()) pages.emplace_back(page);
      begin = at;
    }
    at = end + 1;
  }
  pages.emplace_back(text.substr(begin));
  return pages;
}

std::unique_ptr<Task> make_wikitext(const fs::path& data, const TaskOptions& options,
                                    const Tokenizer& tokenizer) {
  const fs::path file = find_pages(data);
  std::vector<std::string> pages = read_pages(file);
  if (options.limit && static_cast<int64_t>(pages.size()) > *options.limit)
    pages.resize(static_cast<size_t>(*options.limit));
  return std::make_unique<Wikitext>(pages, options, tokenizer);
}

}  // namespace satune
