#include "trainer/eval_samples.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "evaluation/generation.h"

namespace satune {
namespace {

constexpr int64_t kLongestAnswer = 128;  // tokens
constexpr int64_t kPlainPrompt = 64;     // of plain text, which has no prompt of its own: half, but not more

void cut_rows(const std::filesystem::path& file, int64_t last_step, FileOps& ops) {
  if (!std::filesystem::exists(file)) return;
  const std::string text = read_text_file(file);
  std::string kept;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (row.is_object() && row.contains("step") && row["step"].is_number_integer() &&
        row["step"].get<int64_t>() <= last_step)
      kept.append(line).push_back('\n');
  }
  if (kept != text) write_file_atomic(file, kept, ops);
}

}  // namespace

EvalSamples::EvalSamples(RunPlan& plan, const std::filesystem::path& run_folder, int64_t last_step,
                         FileOps& ops)
    : tokenizer_(plan.tokenizer()) {
  const std::filesystem::path file = run_folder / "samples.jsonl";
  try {
    choose_questions(plan);
    cut_rows(file, last_step, ops);
    file_ = std::make_unique<AppendFile>(file, ops);
  } catch (const std::exception& error) {
    spdlog::warn("{}: {}; the run goes on without samples", file.string(), error.what());
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
  Decoder decoder(model, capacity);
  std::string rows;
  for (const Question& question : questions_) {
    GenerationOptions options;
    options.max_new_tokens = std::min(kLongestAnswer, positions - std::ssize(question.prompt));
    options.stop_ids = stop_ids_;
    decoder.clear();
    const Generation answer =
        generate(decoder, question.prompt, options, [&](int32_t) { return !stop_requested(); });
    if (stop_requested()) return "";
    const Json row = {{"step", step},
                      {"record", question.record},
                      {"prompt", question.prompt_text},
                      {"expected", question.expected},
                      {"answer", tokenizer_.decode(answer.text_tokens(), /*skip_special=*/true)}};
    rows += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return rows;
}

void EvalSamples::write(const Llama& model, int64_t step, const std::function<bool()>& stop_requested) {
  if (questions_.empty() || !file_ || failed_) return;
  try {
    file_->append(rows(model, step, stop_requested));
  } catch (const std::exception& error) {  // no memory left for a cache, a logit that is not finite
    failed_ = true;
    spdlog::warn("{}: step {}: {}; the run goes on without samples", file_->path().string(), step,
                 error.what());
  }
}

}  // namespace satune
