// samples.jsonl of a run folder: greedy answers to a few held-out records after each evaluation, so that a
// person sees what the losses mean.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "data/files/atomic_file.h"
#include "model/llama.h"
#include "trainer/append_file.h"
#include "trainer/run_plan.h"

namespace satune {

/// For rank 0. Reads the weights and nothing else of a run: what it does changes no bit of the training, and
/// what fails in it is warned about, once, and ends no run.
class EvalSamples {
 public:
  /// The first settings.eval_samples held-out samples whose prompt leaves room for an answer. Cuts rows of
  /// steps after `last_step`. The plan must outlive it.
  EvalSamples(RunPlan& plan, const std::filesystem::path& run_folder, int64_t last_step, FileOps& ops);

  /// Appends a row {step, record, prompt, expected, answer} for each. All of the model's parameters must be
  /// here. Leaves the step's rows out when `stop_requested` says so meanwhile.
  void write(const Llama& model, int64_t step, const std::function<bool()>& stop_requested);

 private:
  struct Question {
    int64_t record;  ///< 1-based, in the data file
    std::vector<int32_t> prompt;
    std::string prompt_text, expected;
  };
  void choose_questions(RunPlan& plan);
  std::string rows(const Llama& model, int64_t step, const std::function<bool()>& stop_requested) const;

  const Tokenizer& tokenizer_;
  std::vector<int64_t> stop_ids_;
  std::vector<Question> questions_;
  std::unique_ptr<AppendFile> file_;  ///< null where older rows could not be cut
  bool failed_ = false;
};

}  // namespace satune
