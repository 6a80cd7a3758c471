#include "trainer/commands/eval_fingerprints.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>

#include "data/files/error.h"
#include "data/fingerprint.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

void add_file(Sha256& sha, const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw bad_input(path.string(), "a file that cannot be read", "the data just measured");
  std::array<char, 1 << 16> block;
  while (file.read(block.data(), block.size()) || file.gcount() > 0)
    sha.update(std::as_bytes(std::span(block).first(static_cast<size_t>(file.gcount()))));
}

/// Of a folder every file in it, whatever it is called: examples lie beside the questions.
std::string data_fingerprint(const fs::path& data) {
  Sha256 sha;
  if (!fs::is_directory(data)) {
    add_file(sha, data);
    return sha.hex();
  }
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(data))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    sha.update_field(file.lexically_relative(data).generic_string());
    sha.update_field(static_cast<uint64_t>(fs::file_size(file)));
    add_file(sha, file);
  }
  return sha.hex();
}

std::string text_fingerprint(std::string_view text) {
  Sha256 sha;
  sha.update_field(text);
  return sha.hex();
}

/// Where a task's data lies and what makes its prompts.
struct TaskOrigin {
  fs::path data;
  Json prompt_form;
};

TaskOrigin origin_of(const NamedTask& task, const EvalTasks& tasks) {
  if (!task.data.empty())
    return {task.data, task.templated ? Json(tasks.prompt_template->fingerprint()) : Json(nullptr)};
  const fs::path file = task.argument;
  Json json = read_json_file(file, {.allow_comments = true});
  const fs::path data = file.parent_path() / json.value("data", "");
  // Where they lie is nothing that makes the prompts. What is in them is in the items.
  for (const char* place : {"data", "examples"}) json.erase(place);
  std::map<std::string, std::string> sorted;
  for (const auto& [key, value] : json.items()) sorted[key] = value.dump();
  return {data, text_fingerprint(Json(sorted).dump())};
}

}  // namespace

Json eval_fingerprints(const EvalTasks& tasks) {
  const Tokenizer& tokenizer = *tasks.tokenizer;
  const std::string tokenizer_fingerprint =
      text_fingerprint(fmt::format("{} bos {} eos {}", tokenizer.fingerprint(),
                                   tokenizer.bos_id().value_or(-1), tokenizer.eos_id().value_or(-1)));
  std::map<fs::path, std::string> of_data;  // tasks often share a file
  Json json = Json::object();
  for (const NamedTask& task : tasks.tasks) {
    const TaskOrigin origin = origin_of(task, tasks);
    std::string& data = of_data[origin.data];
    if (data.empty()) data = data_fingerprint(origin.data);
    json[task.key] = {{"items", task.task->fingerprint()},
                      {"data", data},
                      {"template", origin.prompt_form},
                      {"tokenizer", tokenizer_fingerprint}};
  }
  return json;
}

}  // namespace satune
