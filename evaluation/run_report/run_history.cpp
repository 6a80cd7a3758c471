#include "evaluation/run_report/run_history.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>

#include "data/files/error.h"
#include "data/utf8.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr const char* kConfig = "config.json";
constexpr const char* kRows = "metrics.jsonl";
constexpr const char* kData = "data.json";
constexpr const char* kSamples = "samples.jsonl";
constexpr const char* kSnapshots = "snapshots";
constexpr std::string_view kStep = "step-";

/// From `offset` to the end; nullopt where it cannot be read.
std::optional<std::string> read_from(const fs::path& path, uint64_t offset) {
  std::ifstream file(path, std::ios::binary);
  if (!file || !file.seekg(static_cast<std::streamoff>(offset))) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

/// Calls f(line) for every line that ends; the bytes up to there.
template <typename F>
size_t for_each_line(std::string_view text, F&& f) {
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string_view::npos; begin = end + 1)
    f(text.substr(begin, end - begin));
  return begin;
}

Json parse_or_null(std::string_view text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json() : value;
}

/// Whether the line became a row.
bool add_row(StepColumns& rows, std::string_view line) {
  const Json row = parse_or_null(line);
  if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) return false;
  const double step = row["step"].get<double>();
  if (!rows.steps.empty() && step <= rows.steps.back()) return false;
  rows.steps.push_back(step);
  for (const auto& [key, value] : row.items()) {
    if (key == "step") continue;
    if (value.is_null()) ++rows.nulls[key];
    if (!value.is_number()) continue;
    std::vector<double>& column = rows.columns[key];
    column.resize(rows.steps.size(), std::nan(""));
    column.back() = value.get<double>();
  }
  return true;
}

std::string text_of(const Json& object, const char* key) {
  return object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : std::string();
}

std::optional<int64_t> integer_of(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key) || !object[key].is_number_integer()) return std::nullopt;
  return object[key].get<int64_t>();
}

SnapshotInfo read_snapshot(const fs::path& folder, int64_t step) {
  SnapshotInfo info{step, false, {}, {}, {}};
  std::error_code error;
  info.complete = fs::exists(folder / "MANIFEST.json", error);
  const Json state = parse_or_null(read_from(folder / "state.json", 0).value_or(""));
  if (!state.is_object()) return info;
  if (state.contains("world")) {
    info.world_size = integer_of(state["world"], "size");
    info.zero_stage = integer_of(state["world"], "zero_stage");
  }
  if (state.contains("progress") && state["progress"].is_object()) {
    const Json& progress = state["progress"];
    if (progress.contains("best_eval_loss") && progress["best_eval_loss"].is_number())
      info.best_eval_loss = progress["best_eval_loss"].get<double>();
  }
  return info;
}

}  // namespace

const std::vector<double>& StepColumns::column(const std::string& key) const {
  static const std::vector<double> none;
  const auto found = columns.find(key);
  return found == columns.end() ? none : found->second;
}

std::string printable(std::string_view text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  std::string out;
  while (!text.empty()) {
    const std::string_view valid = text.substr(0, find_invalid_utf8(text).value_or(text.size()));
    for (const char c : valid) {
      const auto byte = static_cast<unsigned char>(c);
      if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) {
        out += kReplacement;
      } else {
        out += c;
      }
    }
    text.remove_prefix(valid.size());
    if (text.empty()) break;
    out += kReplacement;
    text.remove_prefix(1);
  }
  return out;
}

RunReader::RunReader(fs::path folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error))
    throw bad_input(folder.string(), "no such folder", "the output_dir of a run");
  history_.folder = folder;
  const fs::path absolute = fs::absolute(folder, error).lexically_normal();
  history_.name =
      printable((absolute.has_filename() ? absolute : absolute.parent_path()).filename().string());
}

RunReader::Mark RunReader::mark_of(const fs::path& file) {
  struct stat info = {};
  if (::stat(file.c_str(), &info) != 0) return {};
  return {info.st_ino, static_cast<uint64_t>(info.st_size),
          info.st_mtim.tv_sec * int64_t{1'000'000'000} + info.st_mtim.tv_nsec};
}

bool RunReader::is_run() const {
  std::error_code error;
  return fs::exists(history_.folder / kConfig, error) || fs::exists(history_.folder / kRows, error);
}

bool RunReader::refresh() {
  const fs::path& folder = history_.folder;
  const std::array marks = {mark_of(folder / kRows), mark_of(folder / kConfig), mark_of(folder / kData),
                            mark_of(folder / kSamples), mark_of(folder / kSnapshots)};
  if (!first_ && marks == marks_) return false;
  // What was cut at a resume is another file; one that grew is read on from where it ended.
  const bool same_rows = !first_ && marks[0].inode == marks_[0].inode && marks[0].size >= rows_read_;
  first_ = false;
  marks_ = marks;
  history_.problems.clear();
  read_rows(same_rows);
  history_.config = read_small(kConfig, "its settings are not known");
  history_.data = read_small(kData, "what it trains on is not known (runs of older builds write none)");
  read_samples();
  read_snapshots();
  return true;
}

Json RunReader::read_small(const std::string& file, const std::string& loss) {
  const std::optional<std::string> text = read_from(history_.folder / file, 0);
  if (!text) {
    history_.problems.push_back(fmt::format("{} is not there or cannot be read: {}.", file, loss));
    return {};
  }
  Json value = parse_or_null(*text);
  if (value.is_object()) return value;
  history_.problems.push_back(fmt::format("{} is not a JSON object: {}.", file, loss));
  return {};
}

void RunReader::read_rows(bool same_file) {
  StepColumns& rows = history_.rows;
  if (!same_file) {
    rows = {};
    rows_read_ = 0;
  }
  const std::optional<std::string> text = read_from(history_.folder / kRows, rows_read_);
  if (!text) {
    history_.problems.push_back(
        fmt::format("{} is not there or cannot be read: no step is known to be finished.", kRows));
    return;
  }
  const size_t complete = for_each_line(*text, [&](std::string_view line) {
    if (!line.empty() && !add_row(rows, line)) ++rows.broken_lines;
  });
  rows_read_ += complete;
  rows.unfinished_line = complete < text->size();
  for (auto& [key, column] : rows.columns) column.resize(rows.steps.size(), std::nan(""));
}

void RunReader::read_samples() {
  history_.samples.clear();
  const std::optional<std::string> text = read_from(history_.folder / kSamples, 0);
  if (!text) return;
  int64_t broken = 0;
  for_each_line(*text, [&](std::string_view line) {
    const Json row = parse_or_null(line);
    const std::optional<int64_t> step = integer_of(row, "step");
    if (!step) {
      ++broken;
      return;
    }
    history_.samples.push_back({*step, integer_of(row, "record").value_or(0), text_of(row, "prompt"),
                                text_of(row, "expected"), text_of(row, "answer")});
  });
  if (broken > 0) history_.problems.push_back(fmt::format("{}: {} lines are no samples.", kSamples, broken));
}

void RunReader::read_snapshots() {
  history_.snapshots.clear();
  std::error_code error;
  for (fs::directory_iterator entry(history_.folder / kSnapshots, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (!name.starts_with(kStep)) continue;
    const std::string digits = name.substr(kStep.size());
    if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos)
      continue;
    history_.snapshots.push_back(read_snapshot(entry->path(), std::stoll(digits)));
  }
  std::sort(history_.snapshots.begin(), history_.snapshots.end(),
            [](const SnapshotInfo& a, const SnapshotInfo& b) { return a.step < b.step; });
}

}  // namespace satune
