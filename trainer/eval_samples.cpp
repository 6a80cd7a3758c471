#include "trainer/eval_samples.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <string_view>

#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "evaluation/generation.h"

namespace satune {
namespace {

constexpr int64_t kLongestAnswer = 128;  // tokens
constexpr int64_t kPlainPrompt = 64;     // of plain text, which has no prompt of its own: half, but not more
constexpr const char* kSamplesFile = "samples.jsonl";
// What cut an answer short, as its row says under "cut".
constexpr std::string_view kCutByTime = "time", kCutByStop = "stop";

/// Calls f(line, row, step) for every line that is a row.
template <typename F>
void for_each_sample_row(std::string_view text, F&& f) {
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string_view::npos; begin = end + 1) {
    const std::string_view line = text.substr(begin, end - begin);
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (row.is_object() && row.contains("step") && row["step"].is_number_integer())
      f(line, row, row["step"].get<int64_t>());
  }
}

void cut_sample_rows(const std::filesystem::path& file, int64_t last_step, FileOps& ops) {
  if (!std::filesystem::exists(file)) return;
  const std::string text = read_text_file(file);
  std::string kept;
  for_each_sample_row(text, [&](std::string_view line, const Json&, int64_t step) {
    if (step <= last_step) kept.append(line).push_back('\n');
  });
  if (kept != text) write_file_atomic(file, kept, ops);
}

/// Whether a stop cut an answer after `step`.
bool stop_cut_samples(const std::filesystem::path& file, int64_t step) {
  if (!std::filesystem::exists(file)) return false;
  bool cut = false;
  for_each_sample_row(read_text_file(file), [&](std::string_view, const Json& row, int64_t of_step) {
    cut = cut || (of_step == step && row.contains("cut") && row["cut"] == Json(std::string(kCutByStop)));
  });
  return cut;
}

}  // namespace

bool cut_eval_samples(const std::filesystem::path& run_folder, int64_t last_step, FileOps& ops) {
  const std::filesystem::path file = run_folder / kSamplesFile;
  try {
    cut_sample_rows(file, last_step, ops);
    return true;
  } catch (const std::exception& error) {
    spdlog::warn("{}: cannot cut the rows after step {} ({}); the run goes on and adds none", file.string(),
                 last_step, error.what());
    return false;
  }
}

EvalSamples::EvalSamples(RunPlan& plan, const std::filesystem::path& run_folder, int64_t last_step,
                         double most_seconds, FileOps& ops)
    : path_(run_folder / kSamplesFile), most_seconds_(most_seconds), ops_(ops), tokenizer_(plan.tokenizer()) {
  if (!cut_eval_samples(run_folder, last_step, ops)) return;
  try {
    choose_questions(plan);
    file_ = std::make_unique<AppendFile>(path_, ops_);
  } catch (const std::exception& error) {
    spdlog::warn("{}: {}; the run goes on without samples", path_.string(), error.what());
  }
}

void EvalSamples::choose_questions(RunPlan& plan) {
  if (plan.eval() == nullptr) return;
  const Dataset& data = plan.eval()->dataset();
  const bool plain = data.cache().format() == DataFormat::kText;
  stop_ids_ = stop_token_ids(plan.model_directory(), plan.config(), tokenizer_,
                             plain ? std::nullopt : std::optional(plan.prompt_template().end_id(tokenizer_)));
  for (int64_t i = 0; i < data.size() && std::ssize(questions_) < plan.settings().eval_samples; ++i) {
    const SampleView sample = data.sample(i);
    const auto length = static_cast<int64_t>(sample.tokens.size());
    const int64_t prompt = plain ? std::min(length / 2, kPlainPrompt) : int64_t{sample.prompt_length};
    if (prompt < 1 || prompt >= plan.config().max_position_embeddings) continue;
    const auto asked = sample.tokens.first(static_cast<size_t>(prompt)),
               rest = sample.tokens.subspan(static_cast<size_t>(prompt));
    questions_.push_back({sample.record_number,
                          {asked.begin(), asked.end()},
                          tokenizer_.decode(asked, /*skip_special=*/true),
                          tokenizer_.decode(rest, /*skip_special=*/true)});
  }
}

std::string EvalSamples::rows(const Llama& model, int64_t step,
                              const std::function<bool()>& stop_requested) const {
  const int64_t positions = model.config().max_position_embeddings;
  int64_t capacity = 0;
  for (const Question& question : questions_)
    capacity = std::max(capacity, std::min(std::ssize(question.prompt) + kLongestAnswer, positions));
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  // Empty while there is time.
  const auto why_end = [&]() -> std::string_view {
    if (stop_requested()) return kCutByStop;
    const bool late = std::chrono::duration<double>(Clock::now() - start).count() >= most_seconds_;
    return late ? kCutByTime : std::string_view();
  };
  Decoder decoder(model, capacity);
  std::string rows;
  std::string_view cut;
  int64_t whole = 0;
  for (const Question& question : questions_) {
    std::string answer;
    if (cut.empty()) cut = why_end();
    if (cut.empty()) {
      GenerationOptions options;
      options.max_new_tokens = std::min(kLongestAnswer, positions - std::ssize(question.prompt));
      options.stop_ids = stop_ids_;
      decoder.clear();
      const Generation text =
          generate(decoder, question.prompt, options, [&](int32_t) { return why_end().empty(); });
      answer = tokenizer_.decode(text.text_tokens(), /*skip_special=*/true);
      // An answer that has come to its longest anyway is whole.
      if (text.cut && std::ssize(text.tokens) < options.max_new_tokens) cut = why_end();
    }
    Json row = {{"step", step},
                {"record", question.record},
                {"prompt", question.prompt_text},
                {"expected", question.expected},
                {"answer", answer}};
    if (cut.empty()) {
      ++whole;
    } else {
      row["cut"] = std::string(cut);
    }
    rows += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  if (cut == kCutByTime) {
    spdlog::warn(
        "{}: step {}: {} of {} answers are whole: the other ranks wait {:.4g} s for them, a quarter of "
        "ddp_timeout",
        path_.string(), step, whole, questions_.size(), most_seconds_);
  } else if (cut == kCutByStop) {
    spdlog::info("{}: step {}: {} of {} answers are whole: the run stops", path_.string(), step, whole,
                 questions_.size());
  }
  return rows;
}

void EvalSamples::fail(int64_t step, const std::exception& error) {
  failed_ = true;
  spdlog::warn("{}: step {}: {}; the run goes on without samples", path_.string(), step, error.what());
}

void EvalSamples::write(const Llama& model, int64_t step, const std::function<bool()>& stop_requested) {
  if (questions_.empty() || !file_ || failed_) return;
  try {
    file_->append(rows(model, step, stop_requested));
  } catch (const std::exception& error) {  // no memory left for a cache, a logit that is not finite
    fail(step, error);
  }
}

void EvalSamples::finish(const Llama& model, int64_t step, const std::function<bool()>& stop_requested) {
  if (questions_.empty() || !file_ || failed_) return;
  try {
    if (!stop_cut_samples(path_, step)) return;
    file_.reset();  // what is cut is another file
    cut_sample_rows(path_, step - 1, ops_);
    file_ = std::make_unique<AppendFile>(path_, ops_);
  } catch (const std::exception& error) {
    fail(step, error);
    return;
  }
  write(model, step, stop_requested);
}

}  // namespace satune
