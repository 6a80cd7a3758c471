#include <fmt/ranges.h>

#include <algorithm>
#include <system_error>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/files/safetensors.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

[[noreturn]] void fail_without_safetensors(const fs::path& directory) {
  const std::string expected = fmt::format("{} or {}", kSingleFile, kIndexFile);
  std::error_code error;
  if (!fs::is_directory(directory, error)) throw bad_input(directory.string(), "no directory", expected);
  std::vector<std::string> pickled;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".bin" || extension == ".pth" || extension == ".pt") {
      pickled.push_back(entry.path().filename().string());
    }
  }
  if (pickled.empty()) throw bad_input(directory.string(), "neither", expected);
  std::sort(pickled.begin(), pickled.end());
  const std::string path = directory.string();
  if (pickled.front().starts_with("consolidated.")) {
    throw bad_input(path, fmt::format("Meta's own format only ({})", pickled.front()),
                    fmt::format("{}; convert it (transformers 4): python3 -m "
                                "transformers.models.llama.convert_llama_weights_to_hf --input_dir '{}' "
                                "--model_size 8B --llama_version 3 --output_dir '{}-hf'",
                                expected, path, path));
  }
  throw bad_input(
      path, fmt::format("pickled weights only ({})", pickled.front()),
      fmt::format("{}; convert it: python3 -c \"from transformers import AutoModelForCausalLM as M, "
                  "AutoTokenizer as T; M.from_pretrained('{}', torch_dtype='auto')"
                  ".save_pretrained('{}-safetensors', safe_serialization=True); "
                  "T.from_pretrained('{}').save_pretrained('{}-safetensors')\"",
                  expected, path, path, path, path));
}

// weight_map of the index: tensor -> file name, each a plain name inside the directory.
std::map<std::string, std::string> read_weight_map(const fs::path& index) {
  const Json json = read_json_file(index);
  if (!json.is_object()) throw bad_input(index.string(), describe_json(&json), "an object with weight_map");
  const auto found = json.find("weight_map");
  if (found == json.end() || !found->is_object() || found->empty()) {
    throw bad_input(index.string() + ": weight_map", describe_json(found == json.end() ? nullptr : &*found),
                    "an object from tensor to file");
  }
  std::map<std::string, std::string> weight_map;
  for (const auto& [tensor, value] : found->items()) {
    const std::string where = fmt::format("{}: tensor {}", index.string(), quote_json(tensor));
    if (!value.is_string()) throw bad_input(where, describe_json(&value), "the name of a file");
    const std::string& name = value.get_ref<const std::string&>();
    if (name.empty() || name == "." || name == ".." ||
        name.find_first_of(std::string_view("/\\\0", 3)) != name.npos) {
      throw bad_input(where, "the path " + quote_json(name), "the name of a file in the same directory");
    }
    weight_map.emplace(tensor, name);
  }
  return weight_map;
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& directory) {
  // Where there are both, transformers takes the single file too.
  if (is_file(directory / kSingleFile)) {
    files_.push_back(std::make_unique<SafetensorsFile>(directory / kSingleFile));
    for (const auto& [name, tensor] : files_.back()->tensors()) owner_.emplace(name, files_.back().get());
    return;
  }
  const fs::path index = directory / kIndexFile;
  if (!is_file(index)) fail_without_safetensors(directory);

  const std::map<std::string, std::string> weight_map = read_weight_map(index);
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [tensor, name] : weight_map) {
    const SafetensorsFile*& shard = shards[name];
    if (shard == nullptr) {
      if (!is_file(directory / name)) {
        throw bad_input(index.string(), "no file " + quote_json(name),
                        fmt::format("the shard that holds tensor {}", quote_json(tensor)));
      }
      files_.push_back(std::make_unique<SafetensorsFile>(directory / name));
      shard = files_.back().get();
    }
    if (shard->find(tensor) == nullptr) {
      throw bad_input(fmt::format("{}: tensor {}", shard->path().string(), quote_json(tensor)), "nothing",
                      fmt::format("the tensor, as {} says", kIndexFile));
    }
    owner_.emplace(tensor, shard);
  }
  for (const auto& [name, shard] : shards) {
    for (const auto& [tensor, stored] : shard->tensors()) {
      const auto mapped = weight_map.find(tensor);
      if (mapped != weight_map.end() && mapped->second == name) continue;
      throw bad_input(fmt::format("{}: tensor {}", shard->path().string(), quote_json(tensor)),
                      mapped == weight_map.end()
                          ? fmt::format("no entry in {}", kIndexFile)
                          : fmt::format("{} naming {}", kIndexFile, quote_json(mapped->second)),
                      "an entry that names this file");
    }
  }
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(owner_.size());
  for (const auto& [name, file] : owner_) names.push_back(name);
  return names;
}

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = owner_.find(name);
  return found == owner_.end() ? nullptr : found->second->find(name);
}

const fs::path& Checkpoint::file_of(std::string_view name) const {
  const auto found = owner_.find(name);
  if (found == owner_.end()) throw std::logic_error("checkpoint: no tensor " + std::string(name));
  return found->second->path();
}

void Checkpoint::release(const StoredTensor& tensor) const {
  const auto found = owner_.find(tensor.name);
  if (found != owner_.end()) found->second->release(tensor);
}

std::string sampled_fingerprint(const Checkpoint& checkpoint, uint64_t most_bytes) {
  constexpr size_t kBlock = size_t{64} << 10;
  uint64_t total = 0;
  for (const std::string& name : checkpoint.names()) total += checkpoint.find(name)->bytes.size();
  const uint64_t every = std::max<uint64_t>(1, (total + most_bytes - 1) / most_bytes);
  uint32_t sum = 0;
  uint64_t block = 0;
  for (const std::string& name : checkpoint.names()) {
    const StoredTensor& tensor = *checkpoint.find(name);
    const std::string shape = fmt::format("{} {} {};", name, tensor.dtype, fmt::join(tensor.shape, ","));
    sum = crc32c(std::as_bytes(std::span(shape)), sum);
    for (size_t begin = 0; begin < tensor.bytes.size(); begin += kBlock, ++block) {
      if (begin > 0 && block % every != 0) continue;
      sum = crc32c(tensor.bytes.subspan(begin, std::min(kBlock, tensor.bytes.size() - begin)), sum);
    }
    checkpoint.release(tensor);
  }
  return fmt::format("{:08x}", sum);
}

}  // namespace satune
