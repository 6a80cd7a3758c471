#include "evaluation/run_report/run_history.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <system_error>

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

// Of the rows that were read, bytes at their begin and at their end that are compared before more is read.
// Rows hold times, which no two runs have in common.
constexpr uint64_t kComparedBytes = 1024;

/// What was read of a file; `error` is 0 or an errno: EISDIR for a folder, EINVAL for a pipe and the like.
struct FileText {
  std::string text;
  int error = 0;
};

FileText read_open_file(int fd, uint64_t offset, uint64_t most) {
  struct stat info = {};
  if (::fstat(fd, &info) != 0) return {"", errno};
  if (!S_ISREG(info.st_mode)) return {"", S_ISDIR(info.st_mode) ? EISDIR : EINVAL};
  FileText read;
  char bytes[1 << 16];
  while (read.text.size() < most) {
    const size_t wanted = std::min<uint64_t>(sizeof(bytes), most - read.text.size());
    const ssize_t count =
        ::pread(fd, bytes, wanted, static_cast<off_t>(offset + static_cast<uint64_t>(read.text.size())));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return {"", errno};
    if (count == 0) break;
    read.text.append(bytes, static_cast<size_t>(count));
  }
  return read;
}

/// From `offset` to the end, or `most` bytes of it. A pipe is not waited for.
FileText read_from(const fs::path& path, uint64_t offset,
                   uint64_t most = std::numeric_limits<uint64_t>::max()) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return {"", errno};
  FileText read = read_open_file(fd, offset, most);
  ::close(fd);
  return read;
}

bool is_absent(int error) {
  return error == ENOENT || error == ENOTDIR;
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
  const Json state = parse_or_null(read_from(folder / "state.json", 0).text);
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

RunReader::RunReader(fs::path folder, Begun begun) {
  std::error_code error;
  const fs::file_type type = fs::status(folder, error).type();
  const bool absent = type == fs::file_type::not_found;
  if (type != fs::file_type::directory && !(absent && begun == Begun::kMaybeLater))
    throw bad_input(folder.string(),
                    absent  ? "no such folder"
                    : error ? error.message()
                            : "something that is no folder",
                    "the output_dir of a run");
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
  if (fs::exists(history_.folder / kRows, error)) return true;
  // A model's folder has a config.json as well.
  try {
    const fs::path config = history_.folder / kConfig;
    return fs::exists(config, error) && read_json_file(config).contains("output_dir");
  } catch (const std::exception&) {
    return false;
  }
}

bool RunReader::refresh() {
  const fs::path& folder = history_.folder;
  // Of the folder itself only whether it is there, and the same.
  const std::array marks = {mark_of(folder / kRows),      mark_of(folder / kConfig),
                            mark_of(folder / kData),      mark_of(folder / kSamples),
                            mark_of(folder / kSnapshots), Mark{mark_of(folder).inode, 0, 0}};
  if (!first_ && !unreadable_ && marks == marks_) return false;
  // What was cut at a resume is another file; one that grew is read on from where it ended. The number of a
  // file that was deleted may be the new one's.
  const bool same_rows =
      !first_ && marks[0].inode == marks_[0].inode && marks[0].size >= rows_read_ && holds_what_was_read();
  first_ = false;
  marks_ = marks;
  unreadable_ = false;
  history_.problems.clear();
  read_files(same_rows);
  return true;
}

void RunReader::read_files(bool same_rows) {
  read_rows(same_rows);
  history_.config = read_small(kConfig, "its settings are not known");
  history_.data = read_small(kData, "what it trains on is not known (runs of older builds write none)");
  read_samples();
  read_snapshots();
  if (is_run() || unreadable_) return;
  // One line instead of all that a run would have.
  const std::string folder = printable(history_.folder.string());
  std::error_code error;
  history_.problems = {fs::is_directory(history_.folder, error)
                           ? fmt::format("The run has not begun yet: {} has neither {} nor the {} of a run.",
                                         folder, kRows, kConfig)
                           : fmt::format("The run has not begun yet: there is no folder {}.", folder)};
}

bool RunReader::holds_what_was_read() const {
  const fs::path file = history_.folder / kRows;
  // What cannot be read now is no other file.
  const auto holds = [&](const std::string& bytes, uint64_t offset) {
    const FileText found = read_from(file, offset, bytes.size());
    return found.error != 0 || found.text == bytes;
  };
  return holds(rows_begin_, 0) && holds(rows_end_, rows_read_ - rows_end_.size());
}

void RunReader::note_unreadable(const std::string& file, int error, const std::string& loss) {
  const bool absent = is_absent(error);
  unreadable_ = unreadable_ || !absent;
  history_.problems.push_back(absent ? fmt::format("{} is not there: {}.", file, loss)
                                     : fmt::format("{} cannot be read ({}): {}.", file,
                                                   std::generic_category().message(error), loss));
}

Json RunReader::read_small(const std::string& file, const std::string& loss) {
  const auto [text, error] = read_from(history_.folder / file, 0);
  if (error != 0) {
    note_unreadable(file, error, loss);
    return {};
  }
  Json value = parse_or_null(text);
  if (value.is_object()) return value;
  history_.problems.push_back(fmt::format("{} is not a JSON object: {}.", file, loss));
  return {};
}

void RunReader::read_rows(bool same_file) {
  StepColumns& rows = history_.rows;
  if (!same_file) {
    rows = {};
    rows_read_ = 0;
    rows_begin_.clear();
    rows_end_.clear();
  }
  const auto [text, error] = read_from(history_.folder / kRows, rows_read_);
  if (error != 0) {
    note_unreadable(kRows, error,
                    rows.steps.empty() ? "no step is known to be finished"
                                       : "only the steps that were read before are known");
    return;
  }
  const size_t complete = for_each_line(text, [&](std::string_view line) {
    if (!line.empty() && !add_row(rows, line)) ++rows.broken_lines;
  });
  rows_read_ += complete;
  if (rows_begin_.size() < kComparedBytes)
    rows_begin_.append(text, 0, std::min<size_t>(complete, kComparedBytes - rows_begin_.size()));
  rows_end_.append(text, 0, complete);
  if (rows_end_.size() > kComparedBytes) rows_end_.erase(0, rows_end_.size() - kComparedBytes);
  rows.unfinished_line = complete < text.size();
  for (auto& [key, column] : rows.columns) column.resize(rows.steps.size(), std::nan(""));
}

void RunReader::read_samples() {
  history_.samples.clear();
  const auto [text, error] = read_from(history_.folder / kSamples, 0);
  if (error != 0) {
    if (!is_absent(error)) note_unreadable(kSamples, error, "what the model answers is not known");
    return;
  }
  int64_t broken = 0;
  for_each_line(text, [&](std::string_view line) {
    const Json row = parse_or_null(line);
    const std::optional<int64_t> step = integer_of(row, "step");
    if (!step) {
      ++broken;
      return;
    }
    history_.samples.push_back({*step, integer_of(row, "record").value_or(0), text_of(row, "prompt"),
                                text_of(row, "expected"), text_of(row, "answer"), row.contains("cut")});
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
