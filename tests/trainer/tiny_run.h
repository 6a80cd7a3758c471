// A model of a few thousand parameters, a few dozen records and the settings of a run over them.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "data/files/json.h"
#include "tests/temporary_directory.h"
#include "trainer/fine_tune.h"
#include "trainer/settings.h"

namespace satune::trainer_test {

class TinyRun {
 public:
  /// `records` of seeded words; layers 2-3 of the 4 share attention. `tied`: the head is the embedding.
  /// `head_scale`: its weights start so many times as large as the others.
  explicit TinyRun(int records = 40, bool tied = false, double head_scale = 1);

  std::filesystem::path model() const { return directory_ / "model"; }
  std::filesystem::path data() const { return directory_ / "train.json"; }
  std::filesystem::path output(const std::string& name) const { return directory_ / name; }
  const TemporaryDirectory& directory() const { return directory_; }

  /// "key=value" overrides of a config that trains fp32 on the CPU for 10 steps of 4 rows.
  std::vector<std::string> overrides(const std::string& output_name,
                                     const std::vector<std::string>& more = {}) const;
  Settings settings(const std::string& output_name, const std::vector<std::string>& more = {}) const;
  int train(const std::string& output_name, const std::vector<std::string>& more = {},
            FileOps& ops = posix_file_ops()) const;

 private:
  TemporaryDirectory directory_;
};

/// Rows of metrics.jsonl.
std::vector<Json> metric_rows(const std::filesystem::path& run_folder);
/// step, loss, grad_norm, learning_rate, epoch, num_tokens and eval_loss of each row, as text: what must not
/// depend on interruptions.
std::vector<std::string> repeatable_rows(const std::filesystem::path& run_folder);
/// Bytes of weights and moments in a snapshot.
std::string snapshot_tensors(const std::filesystem::path& run_folder, int64_t step);
/// The message of the Error that `call` throws.
template <typename Error>
std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no such error";
}

/// Names in run_folder/snapshots.
std::vector<std::string> snapshots_of(const std::filesystem::path& run_folder);

}  // namespace satune::trainer_test
