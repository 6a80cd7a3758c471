// Results of single items in a file, so that a run that was broken off goes on where it stopped, and so that
// two runs can be compared item by item.
#pragma once

#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "data/files/json.h"
#include "evaluation/task.h"

namespace satune {

/// JSON lines: first {"satune_items": 1, "model": fingerprint}, then one for each item: {"run", "task"
/// (fingerprint), "item", "tokens", "result"}. Written as the results come; a process that dies leaves at
/// most one line that is cut off, which the next one drops.
class ItemStore {
 public:
  /// Keeps nothing.
  ItemStore() = default;

  /// Takes up the file where it holds results of the same `model`; one of another model is kept as FILE.old
  /// (or FILE.old-2 ..., said in the log) and begins afresh. Throws BadInput for a file that is none of ours
  /// or holds a line that is none, naming line and key, and where another process (or store) has it;
  /// EnvironmentError where it cannot be written. The file is locked until the store is gone. `others`
  /// are files of other ranks, read alone; those that are not there, or another model's, hold nothing, nor
  /// does one that its rank takes away meanwhile.
  ItemStore(std::filesystem::path file, const std::string& model,
            const std::vector<std::filesystem::path>& others = {});

  /// Results of earlier processes under this name and fingerprint, by item. Those of another fingerprint stay
  /// in the file and are never read.
  std::map<int64_t, ItemResult> found(const std::string& run, const std::string& task_fingerprint) const;

  /// The same for what `task` has of items. Throws BadInput naming file, line and key for a result that the
  /// task's metrics() could not read.
  std::map<int64_t, ItemResult> found(const std::string& run, const Task& task) const;

  /// Whether the file itself has this result; what was found in those of other ranks it has not.
  bool holds(const std::string& run, const std::string& task_fingerprint, int64_t item) const;

  /// Writes into the file what was found in those of other ranks alone, results of other tasks too: from then
  /// on they can go. Throws as append() does.
  void hold_found();

  /// Throws EnvironmentError naming the file ("No space left on device").
  void append(const std::string& run, const std::string& task_fingerprint, const ItemResult& result);

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  /// An item of a file, and where it stands there.
  struct Found {
    ItemResult result;
    size_t file = 0;  ///< of files_
    size_t line = 0;
  };
  using FoundItems = std::map<int64_t, Found>;

  /// Length of the complete lines, or nothing where the file is another model's.
  std::optional<uint64_t> read(const std::filesystem::path& file, const std::string& model);
  std::optional<uint64_t> read_lines(const std::string& text, const std::filesystem::path& file,
                                     const std::string& model);
  /// Throws BadInput for a row that was never written here.
  void take_row(const Json& row, const std::filesystem::path& file, size_t line);
  /// Of the run and fingerprint; none where there are no items.
  const FoundItems* find(const std::string& run, const std::string& task_fingerprint) const;
  void write_result(const std::string& key, const ItemResult& result);
  void write_line(const Json& line);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, CloseFile> file_;
  std::vector<std::string> files_;                 ///< that were read
  std::map<std::string, FoundItems> found_;        ///< by run and fingerprint
  std::map<std::string, std::set<int64_t>> held_;  ///< items in the file, by run and fingerprint
};

}  // namespace satune
