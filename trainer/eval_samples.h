// samples.jsonl of a run folder: greedy answers to a few held-out records after each evaluation, so that a
// person sees what the losses mean.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/files/atomic_file.h"
#include "model/llama.h"
#include "trainer/append_file.h"
#include "trainer/run_plan.h"

namespace satune {

/// Of ddp_timeout, what the other ranks wait for the answers after an evaluation.
inline constexpr double kSamplesShareOfTimeout = 0.25;

/// Rewrites samples.jsonl (atomically) without rows of steps > last_step and lines that are no rows. Nothing
/// happens when there is nothing to cut or no file. Never throws: false, with a warning, where it fails.
bool cut_eval_samples(const std::filesystem::path& run_folder, int64_t last_step, FileOps& ops);

/// For rank 0. Reads the weights and nothing else of a run: what it does changes no bit of the training, and
/// what fails in it is warned about, once, and ends no run.
class EvalSamples {
 public:
  /// The first settings.eval_samples held-out samples whose prompt leaves room for an answer. Cuts rows of
  /// steps after `last_step`. `most_seconds`: what all answers after a step may take, because other ranks
  /// wait for them. The plan and `ops` must outlive it.
  EvalSamples(RunPlan& plan, const std::filesystem::path& run_folder, int64_t last_step, double most_seconds,
              FileOps& ops);

  /// Appends a row {step, record, prompt, expected, answer} for each. All of the model's parameters must be
  /// here. Ends with the token in progress when `stop_requested` says so or the time is over; then the answer
  /// in progress ends there, those after it are empty, and their rows have "cut": "stop" | "time" besides.
  void write(const Llama& model, int64_t step, const std::function<bool()>& stop_requested);

  /// Of a run that goes on after `step`, with the model as it was then: writes the step's rows again where a
  /// stop cut them.
  void finish(const Llama& model, int64_t step, const std::function<bool()>& stop_requested);

 private:
  struct Question {
    int64_t record;  ///< 1-based, in the data file
    std::vector<int32_t> prompt;
    std::string prompt_text, expected;
  };
  void choose_questions(RunPlan& plan);
  std::string rows(const Llama& model, int64_t step, const std::function<bool()>& stop_requested) const;
  void fail(int64_t step, const std::exception& error);

  const std::filesystem::path path_;
  const double most_seconds_;
  FileOps& ops_;
  const Tokenizer& tokenizer_;
  std::vector<int64_t> stop_ids_;
  std::vector<Question> questions_;
  std::unique_ptr<AppendFile> file_;  ///< null where older rows could not be cut
  bool failed_ = false;
};

}  // namespace satune
