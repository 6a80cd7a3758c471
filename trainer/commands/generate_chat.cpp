// satune generate --interactive: a conversation over standard input, a line a turn.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>

#include "data/files/error.h"
#include "data/utf8.h"
#include "evaluation/conversation.h"
#include "trainer/commands/generate_run.h"
#include "trainer/interrupts.h"

namespace satune {
namespace {

constexpr int64_t kFirstCapacity = 2048;  // tokens of cache to begin with; twice as many where they are full

/// Lines of standard input, while Ctrl-C is listened to.
class Turns {
 public:
  explicit Turns(Interrupts& interrupts) : interrupts_(interrupts) {}

  /// The next line; nothing at the end of the input and after Ctrl-C.
  std::optional<std::string> next() {
    for (;;) {
      if (const size_t end = buffer_.find('\n'); end != std::string::npos) return cut(end, end + 1);
      if (at_end_ && buffer_.empty()) return std::nullopt;
      if (at_end_) return cut(buffer_.size(), buffer_.size());
      std::array<pollfd, 2> events = {{{STDIN_FILENO, POLLIN, 0}, {interrupts_.descriptor(), POLLIN, 0}}};
      if (::poll(events.data(), events.size(), -1) < 0 && errno != EINTR) return std::nullopt;
      if (interrupts_.take()) return std::nullopt;
      if (events[0].revents != 0) fill();
    }
  }

 private:
  void fill() {
    std::array<char, 4096> bytes;
    const ssize_t count = ::read(STDIN_FILENO, bytes.data(), bytes.size());
    if (count > 0) buffer_.append(bytes.data(), static_cast<size_t>(count));
    at_end_ = count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN);
  }
  std::string cut(size_t size, size_t used) {
    std::string line = buffer_.substr(0, size);
    buffer_.erase(0, used);
    if (line.ends_with('\r')) line.pop_back();
    return line;
  }

  Interrupts& interrupts_;
  std::string buffer_;
  bool at_end_ = false;
};

class Chat {
 public:
  Chat(const GenerateOptions& options, const GenerateModel& model, const PromptTemplate& prompt_template,
       const Llama& llama, Interrupts& interrupts, bool terminal)
      : options_(options),
        model_(model),
        llama_(llama),
        interrupts_(interrupts),
        terminal_(terminal),
        generation_(model.generation(options, &prompt_template)),
        conversation_(prompt_template, *model.tokenizer) {
    grow(kFirstCapacity);
  }

  void turn(const std::string& text) {
    if (text == "/clear") return conversation_.clear();
    if (const auto bad = find_invalid_utf8(text))
      return refuse(bad_input("standard input",
                              fmt::format("a byte at offset {} of the line that is not UTF-8", *bad),
                              "UTF-8 text"));
    conversation_.ask(text);
    const int64_t positions = model_.positions();
    if (static_cast<int64_t>(conversation_.least_tokens()) >= positions) {  // all else stays as it was
      conversation_.withdraw();
      return refuse(bad_input("the turn", "more tokens than the model has positions",
                              fmt::format("fewer than {}, with the template", positions)));
    }
    const int64_t room = std::min(generation_.max_new_tokens, std::max<int64_t>(1, positions / 2));
    size_t forgotten = 0;
    for (; tokens() + room > positions && conversation_.turns() > 1; ++forgotten)
      conversation_.forget_oldest();
    if (forgotten > 0)
      fmt::print(stderr, "satune: the model's {} positions are full: the oldest {} forgotten\n", positions,
                 forgotten == 1 ? "turn is" : fmt::format("{} turns are", forgotten));
    answer(text);
  }

  void finish() const {
    if (generated_ > 0) print_summary(generated_, seconds_, first_token_seconds_, *decoder_);
  }

 private:
  int64_t tokens() const { return static_cast<int64_t>(conversation_.tokens().size()); }

  /// At a terminal somebody can ask again; a script has to know.
  void refuse(const BadInput& error) const {
    if (!terminal_) throw error;
    fmt::print(stderr, "satune: error: {}\n", error.what());
  }

  void grow(int64_t capacity) {
    held_.clear();
    decoder_.reset();  // first, so that there are never two
    decoder_ = std::make_unique<Decoder>(llama_, std::min(capacity, model_.positions()));
  }

  /// Leaves in the decoder what it has read of the prompt already.
  void reuse(const std::vector<int32_t>& prompt) {
    const size_t most = std::min({held_.size(), prompt.size() - 1, static_cast<size_t>(decoder_->length())});
    size_t same = 0;
    while (same < most && held_[same] == prompt[same]) ++same;
    decoder_->truncate(static_cast<int64_t>(same));
  }

  void answer(const std::string& text) {
    const Prompt prompt{"the turn", text, conversation_.tokens(), {}};
    GenerationOptions generation = generation_;
    const auto length = static_cast<int64_t>(prompt.tokens.size());
    generation.max_new_tokens = std::min(generation.max_new_tokens, model_.positions() - length);
    generation.first_index = turn_++;
    if (length + generation.max_new_tokens > decoder_->capacity())
      grow(std::max(2 * decoder_->capacity(), length + generation.max_new_tokens));
    reuse(prompt.tokens);
    AnswerText answer(*model_.tokenizer, {}, options_.stop, [&](std::string_view piece) {
      if (!options_.json) write_now(piece);
    });
    const Generation result = generate(*decoder_, prompt.tokens, generation, [&](int32_t token) {
      return answer.append(token) && !interrupts_.take();
    });
    answer.finish();
    held_ = prompt.tokens;
    held_.insert(held_.end(), result.tokens.begin(), result.tokens.end());
    conversation_.answer(result.text_tokens(), answer.text(), !answer.stop());
    write_now(options_.json ? answer_json(prompt, answer, result, *decoder_, true) : "\n");
    const bool full =
        generation.max_new_tokens < generation_.max_new_tokens && !result.stopped && !result.cut;
    if (full)
      fmt::print(stderr, "satune: the answer ends after {} tokens, where the model's {} positions are full\n",
                 result.tokens.size(), model_.positions());
    interrupts_.take();  // one that came as the answer ended was meant for it
    count(result);
  }

  void count(const Generation& result) {
    if (generated_ == 0) first_token_seconds_ = result.first_token_seconds;
    generated_ += static_cast<int64_t>(result.tokens.size());
    seconds_ += result.seconds;
  }

  const GenerateOptions& options_;
  const GenerateModel& model_;
  const Llama& llama_;
  Interrupts& interrupts_;
  const bool terminal_;
  GenerationOptions generation_;
  Conversation conversation_;
  std::unique_ptr<Decoder> decoder_;
  std::vector<int32_t> held_;  ///< tokens whose first decoder_->length() are in the decoder
  uint64_t turn_ = 0;
  int64_t generated_ = 0;
  double seconds_ = 0, first_token_seconds_ = 0;
};

}  // namespace

int run_conversation(const GenerateOptions& options) {
  const GenerateModel model(options);
  const PromptTemplate prompt_template =
      load_model_template(model.source, options.template_name, *model.tokenizer);
  const Llama llama = load_model(model.source);
  const bool terminal = isatty(STDIN_FILENO) == 1;
  Interrupts interrupts;
  Turns turns(interrupts);
  Chat chat(options, model, prompt_template, llama, interrupts, terminal);
  if (terminal)
    fmt::print(stderr,
               "A line is a turn. Ctrl-C stops an answer; /clear forgets; Ctrl-D, or Ctrl-C again, ends.\n");
  for (;;) {
    if (terminal) fmt::print(stderr, "> ");
    const std::optional<std::string> line = turns.next();
    if (!line) break;
    if (!trim_white_space(*line).empty()) chat.turn(*line);
  }
  if (terminal) fmt::print(stderr, "\n");
  chat.finish();
  return 0;
}

}  // namespace satune
