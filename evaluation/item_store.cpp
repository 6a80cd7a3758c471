#include "evaluation/item_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>

#include "data/files/error.h"
#include "data/files/mapped_file.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr int kVersion = 1, kTries = 100;

std::string key_of(const std::string& run, const std::string& fingerprint) {
  return run + '\n' + fingerprint;
}

/// "results.items.jsonl: line 3"
std::string line_of(const std::string& file, size_t line) {
  return fmt::format("{}: line {}", file, line);
}

/// The value under a key, of which `check` holds. Throws BadInput naming file, line and key.
const Json& checked_field(const Json& row, const char* key, bool (Json::*check)() const noexcept,
                          const std::string& file, size_t line, std::string_view expected) {
  const auto it = row.find(key);
  if (it == row.end() || !((*it).*check)())
    throw bad_input(fmt::format("{}: {}", line_of(file, line), key),
                    describe_json(it == row.end() ? nullptr : &*it), expected);
  return *it;
}

/// Whether a value (nullptr = none) is of the kind that Task::result_form() has in its place.
bool has_form(const Json* value, const Json& form) {
  if (value == nullptr) return false;
  if (!form.is_array()) return value->is_number();
  return value->is_array() && value->size() == form.size() &&
         std::all_of(value->begin(), value->end(), [](const Json& each) { return each.is_number(); });
}

/// Whether a text without a line's end may be a header that was cut off. Any other is not ours to drop.
bool may_begin_header(std::string_view text) {
  const std::string begin = fmt::format(R"({{"satune_items":{},"model":")", kVersion);
  return text.starts_with(begin) || begin.starts_with(text);
}

/// Opens the file, made where there is none, for appending by this process alone until it is closed. Throws
/// BadInput where another one has it.
std::FILE* open_alone(const fs::path& path) {
  struct stat held {
  }, there{};
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  std::FILE* file = fd < 0 ? nullptr : ::fdopen(fd, "ab");
  if (file == nullptr) throw EnvironmentError(fmt::format("{}: {}", path.string(), std::strerror(errno)));
  // A file system without locks is used as if nobody else were there.
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    std::fclose(file);
    throw bad_input(path.string(), "another satune eval writing into it", "an --output of its own for each");
  }
  // Who had it before may have put it aside meanwhile.
  if (::fstat(fd, &held) == 0 && ::stat(path.c_str(), &there) == 0 && held.st_dev == there.st_dev &&
      held.st_ino == there.st_ino)
    return file;
  std::fclose(file);
  return open_alone(path);
}

}  // namespace

ItemStore::ItemStore(fs::path file, const std::string& model, const std::vector<fs::path>& others)
    : path_(std::move(file)) {
  for (const fs::path& other : others) read(other, model);
  file_.reset(open_alone(path_));  // before it is read and cut: another process may be writing
  const std::optional<uint64_t> kept = read(path_, model);
  if (!kept && fs::file_size(path_) > 0) {
    fs::path old = path_.string() + ".old";
    for (int i = 2; file_exists(old); ++i) old = fmt::format("{}.old-{}", path_.string(), i);
    std::error_code error;
    fs::rename(path_, old, error);
    if (error) throw EnvironmentError(path_.string() + ": " + error.message());
    spdlog::warn("{} is of another model, precision or device: kept as {}", path_.string(),
                 old.filename().string());
    file_.reset(open_alone(path_));
  }
  if (::ftruncate(::fileno(file_.get()), static_cast<off_t>(kept.value_or(0))) != 0)
    throw EnvironmentError(fmt::format("{}: {}", path_.string(), std::strerror(errno)));
  if (kept.value_or(0) == 0) write_line({{"satune_items", kVersion}, {"model", model}});
}

std::optional<uint64_t> ItemStore::read(const fs::path& file, const std::string& model) {
  std::string text;
  for (int tries = 1;; ++tries) {
    if (!file_exists(file)) return std::nullopt;
    try {
      text = read_text_file(file);
      break;
    } catch (const BadInput&) {
      // Another rank may have put its file aside since the question, to begin afresh.
      if (file == path_ || tries == kTries) throw;
    }
  }
  files_.push_back(file.string());
  return read_lines(text, file, model);
}

std::optional<uint64_t> ItemStore::read_lines(const std::string& text, const fs::path& file,
                                              const std::string& model) {
  size_t begin = 0, number = 0;
  for (size_t end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string where = line_of(file.string(), ++number);
    Json line;
    try {
      line = parse_json(std::string_view(text).substr(begin, end - begin), file.string(), {.line = number});
    } catch (const BadInput&) {
      // Another rank may have cut its file and gone on while it was read: what is lost here is computed
      // again.
      if (file != path_) break;
      throw;
    }
    if (number > 1) {
      take_row(line, file, number);
      continue;
    }
    if (!line.is_object() || line.value("satune_items", Json()) != Json(kVersion))
      throw bad_input(where, "no header of kept results", "a file that satune eval has written, or none");
    if (checked_field(line, "model", &Json::is_string, file.string(), number, "a fingerprint") != Json(model))
      return std::nullopt;
  }
  if (number == 0 && file == path_ && !may_begin_header(text))
    throw bad_input(line_of(file.string(), 1), "no header of kept results",
                    "a file that satune eval has written, or none");
  return begin;
}

void ItemStore::take_row(const Json& row, const fs::path& file, size_t line) {
  const std::string name = file.string();
  if (!row.is_object())
    throw bad_input(line_of(name, line), describe_json(&row), "a result that satune eval has written");
  const auto field = [&](const char* key, auto check, std::string_view expected) -> const Json& {
    return checked_field(row, key, check, name, line, expected);
  };
  const auto run = field("run", &Json::is_string, "a text").get<std::string>();
  const auto task = field("task", &Json::is_string, "a fingerprint").get<std::string>();
  const auto item = field("item", &Json::is_number_integer, "a whole number").get<int64_t>();
  const auto tokens = field("tokens", &Json::is_number_integer, "a whole number").get<int64_t>();
  const Json& result = field("result", &Json::is_object, "an object");
  const std::string key = key_of(run, task);
  if (file == path_) held_[key].insert(item);
  found_[key][item] = {{item, result, tokens}, files_.size() - 1, line};
}

const ItemStore::FoundItems* ItemStore::find(const std::string& run,
                                             const std::string& task_fingerprint) const {
  const auto it = found_.find(key_of(run, task_fingerprint));
  return it == found_.end() ? nullptr : &it->second;
}

std::map<int64_t, ItemResult> ItemStore::found(const std::string& run,
                                               const std::string& task_fingerprint) const {
  std::map<int64_t, ItemResult> results;
  if (const FoundItems* items = find(run, task_fingerprint))
    for (const auto& [item, each] : *items) results.emplace(item, each.result);
  return results;
}

std::map<int64_t, ItemResult> ItemStore::found(const std::string& run, const Task& task) const {
  std::map<int64_t, ItemResult> results;
  const FoundItems* items = find(run, task.fingerprint());
  if (items == nullptr) return results;
  for (const auto& [item, each] : *items) {
    const std::string& file = files_[each.file];
    if (item < 0 || item >= task.items())
      throw bad_input(line_of(file, each.line) + ": item", std::to_string(item),
                      fmt::format("at least 0 and less than {}", task.items()));
    const Json& result = each.result.result;
    const Json form = task.result_form(item);
    for (const auto& [key, wanted] : form.items()) {
      const auto it = result.find(key);
      const Json* value = it == result.end() ? nullptr : &*it;
      if (!has_form(value, wanted))
        throw bad_input(fmt::format("{}: result.{}", line_of(file, each.line), key), describe_json(value),
                        wanted.is_array() ? fmt::format("{} numbers", wanted.size()) : "a number");
    }
    results.emplace(item, each.result);
  }
  return results;
}

bool ItemStore::holds(const std::string& run, const std::string& task_fingerprint, int64_t item) const {
  const auto it = held_.find(key_of(run, task_fingerprint));
  return it != held_.end() && it->second.contains(item);
}

void ItemStore::append(const std::string& run, const std::string& task_fingerprint,
                       const ItemResult& result) {
  if (file_) write_result(key_of(run, task_fingerprint), result);
}

void ItemStore::hold_found() {
  if (!file_) return;
  for (const auto& [key, items] : found_)
    for (const auto& [item, each] : items)
      if (!held_[key].contains(item)) write_result(key, each.result);
}

void ItemStore::write_result(const std::string& key, const ItemResult& result) {
  const size_t end = key.find('\n');
  write_line({{"run", key.substr(0, end)},
              {"task", key.substr(end + 1)},
              {"item", result.item},
              {"tokens", result.tokens},
              {"result", result.result}});
  held_[key].insert(result.item);
}

void ItemStore::write_line(const Json& line) {
  const std::string text = line.dump() + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size() || std::fflush(file_.get()) != 0)
    throw EnvironmentError(fmt::format("{}: {}", path_.string(), std::strerror(errno)));
}

}  // namespace satune
