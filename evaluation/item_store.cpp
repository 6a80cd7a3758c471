#include "evaluation/item_store.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>

#include "data/files/error.h"
#include "data/files/mapped_file.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr int kVersion = 1;

std::string key_of(const std::string& run, const std::string& fingerprint) {
  return run + '\n' + fingerprint;
}

}  // namespace

ItemStore::ItemStore(fs::path file, const std::string& model, const std::vector<fs::path>& others)
    : path_(std::move(file)) {
  for (const fs::path& other : others)
    if (file_exists(other)) read(other, model);
  std::optional<uint64_t> kept;
  if (file_exists(path_)) kept = read(path_, model);
  if (kept) {
    std::error_code error;
    fs::resize_file(path_, *kept, error);
    if (error) throw EnvironmentError(path_.string() + ": " + error.message());
  }
  if (!kept && file_exists(path_) && fs::file_size(path_) > 0) {
    fs::path old = path_.string() + ".old";
    for (int i = 2; file_exists(old); ++i) old = fmt::format("{}.old-{}", path_.string(), i);
    std::error_code error;
    fs::rename(path_, old, error);
    if (error) throw EnvironmentError(path_.string() + ": " + error.message());
    spdlog::warn("{} is of another model, precision or device: kept as {}", path_.string(),
                 old.filename().string());
  }
  file_.reset(std::fopen(path_.c_str(), kept ? "ab" : "wb"));
  if (!file_) throw EnvironmentError(fmt::format("{}: {}", path_.string(), std::strerror(errno)));
  if (!kept) write_line({{"satune_items", kVersion}, {"model", model}});
}

std::optional<uint64_t> ItemStore::read(const fs::path& file, const std::string& model) {
  const std::string text = read_text_file(file);
  size_t begin = 0, number = 0;
  for (size_t end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string where = fmt::format("{}: line {}", file.string(), ++number);
    const Json line = parse_json(std::string_view(text).substr(begin, end - begin), where);
    if (number == 1) {
      if (!line.is_object() || line.value("satune_items", Json()) != Json(kVersion))
        throw bad_input(where, "no header of kept results", "a file that satune eval has written, or none");
      if (line.value("model", "") != model) return std::nullopt;
      continue;
    }
    for (const char* key : {"run", "task", "item", "tokens", "result"})
      if (!line.is_object() || !line.contains(key))
        throw bad_input(where, fmt::format("no {}", key), "a result that satune eval has written");
    ItemResult result{line["item"], line["result"], line["tokens"]};
    const int64_t item = result.item;
    const std::string key = key_of(line["run"], line["task"]);
    if (file == path_) held_[key].insert(item);
    found_[key][item] = std::move(result);
  }
  if (number == 0) return std::nullopt;  // nothing, or a header that was cut off
  return begin;
}

std::map<int64_t, ItemResult> ItemStore::found(const std::string& run,
                                               const std::string& task_fingerprint) const {
  const auto it = found_.find(key_of(run, task_fingerprint));
  return it == found_.end() ? std::map<int64_t, ItemResult>() : it->second;
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
  for (const auto& [key, results] : found_)
    for (const auto& [item, result] : results)
      if (!held_[key].contains(item)) write_result(key, result);
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
