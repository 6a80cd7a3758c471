#include "model/files/hf_directory.h"

#include <algorithm>
#include <cstdlib>
#include <system_error>

#include "data/files/error.h"
#include "data/files/json.h"
#include "data/files/mapped_file.h"
#include "model/files/json_fields.h"
#include "model/files/safetensors_dtypes.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool has_config(const fs::path& directory) {
  std::error_code ignored;
  return fs::is_regular_file(directory / "config.json", ignored);
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// As huggingface_hub finds it.
fs::path hub_cache() {
  if (const std::string cache = environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const std::string cache = environment("HUGGINGFACE_HUB_CACHE"); !cache.empty()) return cache;
  if (const std::string home = environment("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  if (const std::string xdg = environment("XDG_CACHE_HOME"); !xdg.empty()) {
    return fs::path(xdg) / "huggingface" / "hub";
  }
  return fs::path(environment("HOME")) / ".cache" / "huggingface" / "hub";
}

// "name" or "organisation/name", of the characters that the hub allows.
bool is_hub_id(std::string_view text) {
  constexpr std::string_view kAllowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./";
  if (text.empty() || text.find_first_not_of(kAllowed) != std::string_view::npos) return false;
  if (std::count(text.begin(), text.end(), '/') > 1 || text.ends_with('/')) return false;
  const size_t slash = text.find('/');
  return !text.starts_with('.') && slash != 0 && (slash == std::string_view::npos || text[slash + 1] != '.');
}

// The snapshot that refs/main names, else the one changed last; nothing where none has a config.json.
std::optional<fs::path> find_snapshot(const fs::path& repository) {
  std::error_code error;
  if (fs::is_regular_file(repository / "refs" / "main", error)) {
    std::string commit = read_text_file(repository / "refs" / "main");
    commit.erase(commit.find_last_not_of(" \r\n\t") + 1);
    const fs::path snapshot = repository / "snapshots" / commit;
    if (!commit.empty() && commit.find('/') == std::string::npos && has_config(snapshot)) return snapshot;
  }
  std::optional<fs::path> newest;
  fs::file_time_type newest_time;
  for (const fs::directory_entry& entry : fs::directory_iterator(repository / "snapshots", error)) {
    if (!has_config(entry.path())) continue;
    const fs::file_time_type time = entry.last_write_time(error);
    // The name decides between equal times, so that the choice does not depend on the folder's order.
    if (!newest || std::pair(time, entry.path()) > std::pair(newest_time, *newest)) {
      newest = entry.path();
      newest_time = time;
    }
  }
  return newest;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Whether this is the q_proj or k_proj of a layer that the table has without them.
bool is_query_or_key_of_shared_layer(std::string_view name, const TensorTable& table) {
  for (const std::string_view suffix : {"q_proj.weight", "k_proj.weight"}) {
    if (!name.ends_with(suffix) || table.find(name) != nullptr) continue;
    return table.find(std::string(name.substr(0, name.size() - suffix.size())) + "v_proj.weight") != nullptr;
  }
  return false;
}

bool is_droppable(std::string_view name, const TensorTable& table, bool dense_source) {
  // Written by old conversions; computed from the config here.
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  // A tied head is the embedding.
  if (name == "lm_head.weight" && table.find(name) == nullptr) return true;
  return dense_source && is_query_or_key_of_shared_layer(name, table);
}

void check_tensor(const Checkpoint& checkpoint, const TensorInfo& info, const std::string& missing_from) {
  const StoredTensor* stored = checkpoint.find(info.name);
  if (stored == nullptr) {
    throw bad_input(fmt::format("{}: tensor {}", missing_from, info.name), "nothing",
                    fmt::format("shape {}", shape_text(info.shape)));
  }
  const std::string where = fmt::format("{}: tensor {}", checkpoint.file_of(info.name).string(), info.name);
  if (stored->shape != info.shape) {
    throw bad_input(where, "shape " + shape_text(stored->shape),
                    shape_text(info.shape) + " as config.json says");
  }
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    if (stored->dtype == safetensors_name(dtype)) return;
  }
  throw bad_input(where, "dtype " + stored->dtype, "F64, F32, F16 or BF16");
}

}  // namespace

fs::path resolve_model_directory(const std::string& name_or_path) {
  const fs::path path(name_or_path);
  std::error_code not_there;
  if (is_folder(path)) {
    // The folder of a run has a config.json too: the run's own.
    if (is_folder(path / "snapshots") && fs::exists(path / "metrics.jsonl", not_there)) {
      throw bad_input(name_or_path, "the folder of a run",
                      has_config(path / "export") ? "its exported model: " + (path / "export").string()
                                                  : "a model directory (satune export writes one)");
    }
    if (has_config(path)) return path;
    throw bad_input(name_or_path, "a directory without config.json", "a Hugging Face model directory");
  }
  if (fs::exists(path, not_there)) throw bad_input(name_or_path, "a file", "a model directory or a hub id");
  if (!is_hub_id(name_or_path))
    throw bad_input(name_or_path, "no such directory", "a model directory or a hub id");

  std::string folder = "models--" + name_or_path;
  if (const size_t slash = folder.find('/'); slash != std::string::npos) folder.replace(slash, 1, "--");
  const fs::path repository = hub_cache() / folder;
  if (const std::optional<fs::path> snapshot = find_snapshot(repository)) return *snapshot;
  throw bad_input(
      name_or_path, fmt::format("neither such a directory nor {}", repository.string()),
      fmt::format("a model directory, or the hub's files in the cache: run hf download {}", name_or_path));
}

ModelConfig read_model_config(const fs::path& directory) {
  const fs::path path = directory / "config.json";
  ModelConfig config = parse_model_config(read_json_file(path), path.string());
  if (config.eos_token_ids.empty()) config.eos_token_ids = generation_config_eos(directory);
  return config;
}

std::vector<int64_t> generation_config_eos(const fs::path& directory) {
  const fs::path path = directory / "generation_config.json";
  if (!file_exists(path)) return {};
  const Json json = read_json_file(path);
  return JsonFields(json, path.string()).token_ids("eos_token_id");
}

std::vector<std::string> check_checkpoint(const Checkpoint& checkpoint, const TensorTable& table,
                                          bool dense_source) {
  const std::vector<std::string> names = checkpoint.names();
  const std::string first_file = names.empty() ? "checkpoint" : checkpoint.file_of(names.front()).string();
  // A missing tensor has no file; where there are shards, their folder is named.
  const bool single = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
    return checkpoint.file_of(name) == first_file;
  });
  const std::string missing_from = single ? first_file : fs::path(first_file).parent_path().string();
  for (const TensorInfo& info : table.tensors()) check_tensor(checkpoint, info, missing_from);

  std::vector<std::string> skipped;
  for (const std::string& name : names) {
    if (table.find(name) != nullptr) continue;
    if (!is_droppable(name, table, dense_source)) {
      throw bad_input(fmt::format("{}: tensor {}", checkpoint.file_of(name).string(), quote_json(name)),
                      "a tensor that config.json has no place for", "the tensors of this model only");
    }
    skipped.push_back(name);
  }
  return skipped;
}

std::vector<ExportShard> plan_export_shards(const TensorTable& table, DType dtype, uint64_t max_shard_bytes) {
  std::vector<ExportShard> shards;
  uint64_t shard_bytes = 0;
  for (const TensorInfo& info : table.tensors()) {
    const uint64_t bytes = static_cast<uint64_t>(info.numel() * dtype_bytes(dtype));
    if (shards.empty() || shard_bytes + bytes > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().tensors.push_back({info.name, std::string(safetensors_name(dtype)), info.shape});
    shard_bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].file_name = shards.size() == 1
                              ? "model.safetensors"
                              : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

void write_export_index(const fs::path& directory, const std::vector<ExportShard>& shards, FileOps& ops) {
  if (shards.size() < 2) return;
  Json weight_map = Json::object();
  uint64_t total_bytes = 0, total_parameters = 0;
  for (const ExportShard& shard : shards) {
    for (const TensorSpec& spec : shard.tensors) {
      uint64_t numel = 1;
      for (const int64_t size : spec.shape) numel *= static_cast<uint64_t>(size);
      total_parameters += numel;
      total_bytes += numel * *safetensors_bits(spec.dtype) / 8;
      weight_map[spec.name] = shard.file_name;
    }
  }
  const Json index{{"metadata", {{"total_parameters", total_parameters}, {"total_size", total_bytes}}},
                   {"weight_map", weight_map}};
  write_file_atomic(directory / "model.safetensors.index.json", write_json(index), ops);
}

}  // namespace satune
