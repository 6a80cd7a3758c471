// satune generate --prompts: a file of prompts in batches, one line of JSON a prompt, in the file's order.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>

#include "data/files/error.h"
#include "trainer/commands/generate_run.h"
#include "trainer/item_progress.h"
#include "trainer/signals.h"

namespace satune {
namespace {

/// A file, or standard output. Each line is there once this returns: in FILE.partial until all are, so that a
/// file of that name is whole.
class Lines {
 public:
  explicit Lines(const std::optional<std::filesystem::path>& path) {
    if (!path) return;
    name_ = path->string();
    partial_ = name_ + ".partial";
    file_.reset(std::fopen(partial_.c_str(), "w"));
    if (!file_) fail();
  }

  void write(const std::string& line) {
    if (!file_) return write_now(line);
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fflush(file_.get()) != 0)
      fail();
  }

  void finish() {
    if (file_ && (std::fclose(file_.release()) != 0 || std::rename(partial_.c_str(), name_.c_str()) != 0))
      fail();
  }

  /// What a signal leaves.
  std::string what_is_left() const {
    return file_ ? fmt::format("{} holds the answers until here; the same command begins anew", partial_)
                 : "the answers until here are printed; the same command begins anew";
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  [[noreturn]] void fail() const {
    throw EnvironmentError(fmt::format("--output {}: cannot be written: {}", name_, std::strerror(errno)));
  }

  std::string name_, partial_;
  std::unique_ptr<std::FILE, Close> file_;
};

struct FilePrompts {
  std::vector<Prompt> prompts;
  std::vector<size_t> numbers;  ///< of the record or line
  std::optional<PromptTemplate> prompt_template;
};

FilePrompts read_file_prompts(const GenerateOptions& options, const GenerateModel& model) {
  FilePrompts file;
  for (PromptRecord& request : read_prompts(*options.prompts)) {
    const std::string name = fmt::format("{} prompt {}", options.prompts->string(), request.record.number);
    file.numbers.push_back(request.record.number);
    if (request.text && !options.template_name) {
      file.prompts.push_back(plain_prompt(name, std::move(*request.text), *model.tokenizer));
      continue;
    }
    if (request.text) request.record.instruction = std::move(*request.text);
    if (!file.prompt_template)
      file.prompt_template = load_model_template(model.source, options.template_name, *model.tokenizer);
    file.prompts.push_back(template_prompt(name, request.record, *file.prompt_template, *model.tokenizer));
  }
  return file;
}

/// Answers wait here for those before them.
class InOrder {
 public:
  explicit InOrder(Lines& lines) : lines_(lines) {}
  void put(size_t index, std::string line) {
    waiting_.emplace(index, std::move(line));
    for (; !waiting_.empty() && waiting_.begin()->first == next_; ++next_) {
      lines_.write(waiting_.begin()->second);
      waiting_.erase(waiting_.begin());
    }
  }

 private:
  Lines& lines_;
  std::map<size_t, std::string> waiting_;
  size_t next_ = 0;
};

}  // namespace

int run_prompt_file(const GenerateOptions& options) {
  if (options.output) require_new_file(*options.output, "--output");
  std::optional<StopNotice> stop_notice;
  stop_notice.emplace(stop_line("nothing was generated yet"), /*resumable=*/false);
  const GenerateModel model(options);
  const FilePrompts file = read_file_prompts(options, model);
  int64_t capacity = 0;
  std::vector<std::span<const int32_t>> tokens;
  std::vector<std::unique_ptr<AnswerText>> texts;
  for (const Prompt& prompt : file.prompts) {
    capacity = std::max(capacity, static_cast<int64_t>(prompt.tokens.size()) +
                                      bounded_answer(options, prompt, model.positions()));
    tokens.emplace_back(prompt.tokens);
    texts.push_back(std::make_unique<AnswerText>(*model.tokenizer, prompt.text_context, options.stop,
                                                 [](std::string_view) {}));
  }
  const GenerationOptions generation =
      model.generation(options, file.prompt_template ? &*file.prompt_template : nullptr);
  const Llama llama = load_model(model.source);
  Lines lines(options.output);
  stop_notice.emplace(stop_line(lines.what_is_left()), /*resumable=*/false);
  InOrder in_order(lines);

  const auto start = std::chrono::steady_clock::now();
  Decoder decoder(llama, capacity, std::min(options.batch_size, static_cast<int64_t>(tokens.size())));
  int64_t generated = 0;
  double first_token_seconds = 0;
  {
    ItemProgress progress("generate", static_cast<int64_t>(tokens.size()), 0, options.output.has_value());
    generate_together(
        decoder, tokens, generation, [&](size_t i, int32_t token) { return texts[i]->append(token); },
        [&](size_t i, const Generation& result) {
          texts[i]->finish();
          in_order.put(i, answer_json(file.prompts[i], *texts[i], result, decoder, true, file.numbers[i]));
          if (i == 0) first_token_seconds = result.first_token_seconds;
          generated += static_cast<int64_t>(result.tokens.size());
          progress.item(static_cast<int64_t>(result.tokens.size()));
        });
  }
  stop_notice.reset();
  lines.finish();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  print_summary(generated, seconds, first_token_seconds, decoder);
  return 0;
}

}  // namespace satune
