// What the folder of a run tells about it: settings, the rows of metrics.jsonl, data, samples and snapshots.
// Files only: the run may be over, or at work in another process.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "data/files/json.h"

namespace satune {

/// The numbers of metrics.jsonl, one column a key, all as long as `steps`. NaN where a row has null (what was
/// not finite) or lacks the key.
struct StepColumns {
  std::vector<double> steps;  ///< ascending
  std::map<std::string, std::vector<double>> columns;
  std::map<std::string, int64_t> nulls;  ///< by key
  int64_t broken_lines = 0;              ///< complete lines that are no row of a later step than those before
  bool unfinished_line = false;          ///< the last one: being written, or torn when a run was killed

  /// Empty where no row has a number under the key.
  const std::vector<double>& column(const std::string& key) const;
};

/// A greedy answer to a held-out record after a step.
struct EvalSample {
  int64_t step = 0, record = 0;
  std::string prompt, expected, answer;
  bool cut = false;  ///< by a stop, or because its time was over
};

struct SnapshotInfo {
  int64_t step = 0;
  bool complete = false;
  std::optional<double> best_eval_loss;
  std::optional<int64_t> world_size, zero_stage;
};

struct RunHistory {
  std::filesystem::path folder;
  std::string name;  ///< the folder's last part; printable
  Json config;       ///< null where there is none
  Json data;         ///< data.json; null where there is none
  StepColumns rows;
  std::vector<EvalSample> samples;      ///< in the file's order
  std::vector<SnapshotInfo> snapshots;  ///< ascending
  std::vector<std::string> problems;    ///< files that are missing or cannot be read, and what is lost by it
};

/// `text` as UTF-8 without control characters but line breaks and tabs; others become U+FFFD.
std::string printable(std::string_view text);

/// Reads a folder again and again, of metrics.jsonl only what was appended. What cannot be read is told in
/// the history, with the system's reason, and never thrown.
class RunReader {
 public:
  enum class Begun {
    kAlready,
    kMaybeLater,  ///< a folder that is not there yet is a run that has not begun
  };

  /// Throws BadInput naming the folder when there is none (but for kMaybeLater), or something else instead.
  explicit RunReader(std::filesystem::path folder, Begun begun = Begun::kAlready);

  /// Whether a file has changed since the last call, or could not be read then; true the first time.
  bool refresh();
  const RunHistory& history() const { return history_; }
  /// Whether there is a config.json or a metrics.jsonl: whether it looks like a run at all.
  bool is_run() const;

 private:
  /// What a file was like when it was read.
  struct Mark {
    uint64_t inode = 0, size = 0;
    int64_t changed_ns = 0;
    bool operator==(const Mark&) const = default;
  };
  static Mark mark_of(const std::filesystem::path& file);

  void read_files(bool same_rows);
  bool holds_what_was_read() const;
  /// The problem that `file` cannot be read for `error`, an errno, and what is lost by it.
  void note_unreadable(const std::string& file, int error, const std::string& loss);
  Json read_small(const std::string& file, const std::string& loss);
  void read_rows(bool same_file);
  void read_samples();
  void read_snapshots();

  RunHistory history_;
  std::array<Mark, 6> marks_ = {};
  uint64_t rows_read_ = 0;             ///< bytes of metrics.jsonl
  std::string rows_begin_, rows_end_;  ///< the first and the last of them: what it is known again by
  bool first_ = true;
  bool unreadable_ = false;  ///< a file was there and could not be read: it is tried again
};

}  // namespace satune
