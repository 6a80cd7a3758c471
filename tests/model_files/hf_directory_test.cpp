#include "model/files/hf_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <chrono>
#include <map>
#include <numeric>

#include "data/files/error.h"
#include "data/files/json.h"
#include "tests/realdata.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

// Sets environment variables for one test.
class Environment {
 public:
  explicit Environment(const std::map<std::string, std::string>& values) {
    for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) {
      const char* old = ::getenv(name);
      saved_[name] = old == nullptr ? std::nullopt : std::optional<std::string>(old);
      ::unsetenv(name);
      if (const auto value = values.find(name); value != values.end())
        ::setenv(name, value->second.c_str(), 1);
    }
  }
  ~Environment() {
    for (const auto& [name, value] : saved_) {
      if (value) {
        ::setenv(name.c_str(), value->c_str(), 1);
      } else {
        ::unsetenv(name.c_str());
      }
    }
  }

 private:
  std::map<std::string, std::optional<std::string>> saved_;
};

std::string error_of_resolve(const std::string& name) {
  try {
    return "accepted " + resolve_model_directory(name).string();
  } catch (const BadInput& error) {
    return error.what();
  }
}

TEST(ResolveModelDirectory, TheFolderOfARunPointsToItsExport) {
  const TemporaryDirectory folder;
  const std::string path = folder.path().string();
  folder.write("config.json", "{}");  // the run's settings
  folder.write("metrics.jsonl", "");
  std::filesystem::create_directories(folder / "snapshots");
  EXPECT_THAT(error_of_resolve(path),
              HasSubstr(path + ": found the folder of a run, expected a model directory"));
  std::filesystem::create_directories(folder / "export");
  folder.write("export/config.json", "{}");
  EXPECT_THAT(error_of_resolve(path), HasSubstr("expected its exported model: " + path + "/export"));
}

TEST(ResolveModelDirectory, ADirectoryIsItself) {
  const TemporaryDirectory folder;
  const std::string path = folder.path().string();
  EXPECT_EQ(error_of_resolve(path),
            path + ": found a directory without config.json, expected a Hugging Face model directory");
  folder.write("config.json", "{}");
  EXPECT_EQ(resolve_model_directory(path), folder.path());
  EXPECT_THAT(error_of_resolve(path + "/config.json"), HasSubstr("found a file"));
  EXPECT_THAT(error_of_resolve(path + "/none"), HasSubstr("found no such directory"));
  EXPECT_THAT(error_of_resolve("./none"), HasSubstr("found no such directory"));
}

TEST(ResolveModelDirectory, AHubIdComesFromTheLocalCache) {
  const TemporaryDirectory folder;
  const std::string model = "hub/models--meta-llama--Meta-Llama-3-8B/";
  folder.write(model + "snapshots/aaa/config.json", "{}");
  folder.write(model + "snapshots/bbb/config.json", "{}");
  folder.write(model + "refs/main", "aaa\n");
  const Environment environment({{"HF_HOME", folder.path().string()}});
  EXPECT_EQ(resolve_model_directory("meta-llama/Meta-Llama-3-8B"), folder / (model + "snapshots/aaa"));
  // Without refs/main, or where it names what is not there, the newest one.
  for (const char* ref : {"ccc", "", "../snapshots/aaa"}) {
    folder.write(model + "refs/main", ref);
    fs::last_write_time(folder / (model + "snapshots/aaa"),
                        fs::file_time_type::clock::now() - std::chrono::hours(1));
    EXPECT_EQ(resolve_model_directory("meta-llama/Meta-Llama-3-8B"), folder / (model + "snapshots/bbb"));
  }
  fs::remove(folder / (model + "refs/main"));
  EXPECT_EQ(resolve_model_directory("meta-llama/Meta-Llama-3-8B"), folder / (model + "snapshots/bbb"));
}

TEST(ResolveModelDirectory, TheCacheIsWhereHuggingFaceKeepsIt) {
  const TemporaryDirectory folder;
  const std::string root = folder.path().string();
  for (const char* place : {"direct", "home/hub", "xdg/huggingface/hub", "user/.cache/huggingface/hub"}) {
    folder.write(std::string(place) + "/models--gpt/snapshots/x/config.json", "{}");
  }
  std::map<std::string, std::string> values{{"HOME", root + "/user"}};
  const auto resolved = [&] {
    const Environment environment(values);
    return resolve_model_directory("gpt").string();
  };
  EXPECT_THAT(resolved(), StartsWith(root + "/user/.cache/"));
  values["XDG_CACHE_HOME"] = root + "/xdg";
  EXPECT_THAT(resolved(), StartsWith(root + "/xdg/"));
  values["HF_HOME"] = root + "/home";
  EXPECT_THAT(resolved(), StartsWith(root + "/home/"));
  values["HF_HUB_CACHE"] = root + "/direct";
  EXPECT_THAT(resolved(), StartsWith(root + "/direct/"));
}

TEST(ResolveModelDirectory, AnAbsentHubIdSaysWhatToRun) {
  const TemporaryDirectory folder;
  const Environment environment({{"HF_HOME", folder.path().string()}});
  EXPECT_THAT(error_of_resolve("meta-llama/Meta-Llama-3-8B"),
              AllOf(StartsWith("meta-llama/Meta-Llama-3-8B: found neither such a directory nor "),
                    HasSubstr("run hf download meta-llama/Meta-Llama-3-8B")));
  // Begun, but without its config.
  folder.write("hub/models--a--b/snapshots/x/model.safetensors", "");
  EXPECT_THAT(error_of_resolve("a/b"), HasSubstr("run hf download a/b"));
  for (const char* name : {"a/b/c", "/a", "a b", "a/", "a/../b", "a/.b", ""}) {
    EXPECT_THAT(error_of_resolve(name), HasSubstr("found no such directory")) << name;
  }
}

constexpr const char* kConfig =
    R"({"model_type":"llama","vocab_size":8,"hidden_size":4,"intermediate_size":6,"num_hidden_layers":2,)"
    R"("num_attention_heads":2)";

TEST(ReadModelConfig, EosComesFromTheGenerationConfigWhereTheConfigHasNone) {
  const TemporaryDirectory folder;
  folder.write("config.json", std::string(kConfig) + "}");
  EXPECT_THAT(read_model_config(folder.path()).eos_token_ids, IsEmpty());
  folder.write("generation_config.json", R"({"eos_token_id":[3,4]})");
  EXPECT_THAT(read_model_config(folder.path()).eos_token_ids, ElementsAre(3, 4));
  folder.write("config.json", std::string(kConfig) + R"(,"eos_token_id":2})");
  EXPECT_THAT(read_model_config(folder.path()).eos_token_ids, ElementsAre(2));
}

TEST(ReadModelConfig, ErrorsNameTheFile) {
  const TemporaryDirectory folder;
  EXPECT_THROW(read_model_config(folder.path()), BadInput);
  folder.write("config.json", "{\"model_type\":\"llama\"}");
  try {
    read_model_config(folder.path());
    FAIL();
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), StartsWith((folder / "config.json").string() + ": key vocab_size"));
  }
}

ModelConfig small_config() {
  return parse_model_config(parse_json(std::string(kConfig) + "}", "config.json"), "config.json");
}

std::vector<TensorSpec> specs_of(const TensorTable& table, DType dtype) {
  std::vector<TensorSpec> specs;
  for (const ExportShard& shard : plan_export_shards(table, dtype, ~uint64_t{0})) {
    specs.insert(specs.end(), shard.tensors.begin(), shard.tensors.end());
  }
  return specs;
}

void write_zeros(const fs::path& path, const std::vector<TensorSpec>& specs) {
  SafetensorsWriter writer(path, specs);
  for (const TensorSpec& spec : specs) {
    const int64_t numel =
        std::accumulate(spec.shape.begin(), spec.shape.end(), int64_t{1}, std::multiplies<>());
    const int64_t size = spec.dtype == "F64" || spec.dtype == "I64" ? 8 : spec.dtype == "F32" ? 4 : 2;
    const std::vector<std::byte> zeros(static_cast<size_t>(numel * size));
    writer.write(zeros);
  }
  writer.commit();
}

// The skipped names, or the error.
std::vector<std::string> check(const std::vector<TensorSpec>& specs, const TensorTable& table,
                               bool dense_source) {
  const TemporaryDirectory folder;
  write_zeros(folder / "model.safetensors", specs);
  try {
    return check_checkpoint(Checkpoint(folder.path()), table, dense_source);
  } catch (const BadInput& error) {
    EXPECT_THAT(error.what(), StartsWith((folder / "model.safetensors").string() + ": tensor "));
    return {error.what()};
  }
}

TEST(CheckCheckpoint, AllFloatingTypesAreAccepted) {
  const TensorTable table(small_config());
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_THAT(check(specs_of(table, dtype), table, false), IsEmpty());
  }
  std::vector<TensorSpec> specs = specs_of(table, DType::kF32);
  specs[3].dtype = "I64";
  EXPECT_THAT(check(specs, table, false),
              ElementsAre(HasSubstr("tensor " + specs[3].name +
                                    ": found dtype I64, expected F64, F32, F16 or BF16")));
}

// rival: tensors missing from a checkpoint left uninitialised.
TEST(CheckCheckpoint, MissingMisshapenAndUnknownTensorsAreNamed) {
  const TensorTable table(small_config());
  const std::vector<TensorSpec> good = specs_of(table, DType::kF32);
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<TensorSpec> specs = good;
    specs.erase(specs.begin() + static_cast<long>(i));
    EXPECT_THAT(check(specs, table, true),
                ElementsAre(HasSubstr("tensor " + good[i].name + ": found nothing, ")));
    specs = good;
    specs[i].shape[0] += 1;
    EXPECT_THAT(check(specs, table, true),
                ElementsAre(HasSubstr("tensor " + good[i].name + ": found shape [")));
  }
  std::vector<TensorSpec> specs = good;
  specs.push_back({"model.layers.2.self_attn.q_proj.weight", "F32", {4, 4}});
  EXPECT_THAT(check(specs, table, true),
              ElementsAre(HasSubstr("tensor \"model.layers.2.self_attn.q_proj.weight\"")));
  specs.back() = {"model.layers.0.self_attn.q_proj.bias", "F32", {4}};
  EXPECT_THAT(check(specs, table, true), ElementsAre(HasSubstr("no place for")));
}

TEST(CheckCheckpoint, RotaryTablesOfOldConversionsAreSkipped) {
  const TensorTable table(small_config());
  std::vector<TensorSpec> specs = specs_of(table, DType::kF16);
  specs.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {1}});
  EXPECT_THAT(check(specs, table, false), ElementsAre("model.layers.0.self_attn.rotary_emb.inv_freq"));
}

TEST(CheckCheckpoint, TheHeadOfATiedModelIsSkipped) {
  const std::vector<TensorSpec> untied = specs_of(TensorTable(small_config()), DType::kF32);
  ModelConfig config = small_config();
  config.tie_word_embeddings = true;
  EXPECT_THAT(check(untied, TensorTable(config), false), ElementsAre("lm_head.weight"));
}

TEST(CheckCheckpoint, QueryAndKeyOfSharedLayersAreSkippedOfADenseSourceOnly) {
  const std::vector<TensorSpec> dense = specs_of(TensorTable(small_config()), DType::kF32);
  ModelConfig config = small_config();
  config.sharing = SharingPlan::parse("1", AnchorRule::kBefore, 2);
  const TensorTable shared(config);
  EXPECT_THAT(check(dense, shared, true), ElementsAre("model.layers.1.self_attn.k_proj.weight",
                                                      "model.layers.1.self_attn.q_proj.weight"));
  EXPECT_THAT(check(dense, shared, false),
              ElementsAre(HasSubstr("tensor \"model.layers.1.self_attn.k_proj.weight\"")));
  EXPECT_THAT(check(specs_of(shared, DType::kF32), shared, false), IsEmpty());
  // The other way round: an SA checkpoint lacks what a dense model needs.
  EXPECT_THAT(check(specs_of(shared, DType::kF32), TensorTable(small_config()), true),
              ElementsAre(HasSubstr("model.layers.1.self_attn.q_proj.weight: found nothing")));
}

TEST(CheckCheckpoint, RealCheckpoints) {
  for (const char* name : {"stories260K_hf", "weights_tiny_random_llama"}) {
    SATUNE_REALDATA_OR_SKIP(directory, name);
    const TensorTable table(read_model_config(directory));
    EXPECT_THAT(check_checkpoint(Checkpoint(directory), table, true), IsEmpty()) << name;
  }
}

TEST(PlanExportShards, OneShardHasThePlainName) {
  const TensorTable table(small_config());
  const std::vector<ExportShard> shards = plan_export_shards(table, DType::kBF16, 5'000'000'000);
  ASSERT_EQ(shards.size(), 1u);
  EXPECT_EQ(shards[0].file_name, "model.safetensors");
  EXPECT_EQ(shards[0].tensors.size(), table.tensors().size());
  EXPECT_EQ(shards[0].tensors[0].dtype, "BF16");
  const TemporaryDirectory folder;
  write_export_index(folder.path(), shards);
  EXPECT_THAT(entries_of(folder.path()), IsEmpty());
}

TEST(PlanExportShards, ShardsKeepTheOrderAndTheLimit) {
  const TensorTable table(small_config());
  constexpr uint64_t kLimit = 200;
  const std::vector<ExportShard> shards = plan_export_shards(table, DType::kF32, kLimit);
  ASSERT_GT(shards.size(), 2u);
  size_t next = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    EXPECT_EQ(shards[i].file_name, fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    uint64_t bytes = 0;
    for (const TensorSpec& spec : shards[i].tensors) {
      EXPECT_EQ(spec.name, table.tensors()[next].name);
      EXPECT_EQ(spec.shape, table.tensors()[next].shape);
      bytes += static_cast<uint64_t>(table.tensors()[next++].numel()) * 4;
    }
    EXPECT_LE(bytes, kLimit);
  }
  EXPECT_EQ(next, table.tensors().size());
  // A tensor above the limit has a shard of its own, and none is empty.
  for (const ExportShard& shard : plan_export_shards(table, DType::kF32, 1))
    EXPECT_EQ(shard.tensors.size(), 1u);
}

TEST(PlanExportShards, Llama3FitsInFourShards) {
  SATUNE_REALDATA_OR_SKIP(directory, "cfg_llama3_8b");
  const TensorTable table(read_model_config(directory));
  EXPECT_EQ(plan_export_shards(table, DType::kBF16, 5'000'000'000).size(), 4u);
}

TEST(WriteExportIndex, WhatIsWrittenOpensAsACheckpoint) {
  const TensorTable table(small_config());
  const std::vector<ExportShard> shards = plan_export_shards(table, DType::kF32, 200);
  const TemporaryDirectory folder;
  for (const ExportShard& shard : shards) write_zeros(folder / shard.file_name, shard.tensors);
  write_export_index(folder.path(), shards);
  EXPECT_THAT(check_checkpoint(Checkpoint(folder.path()), table, false), IsEmpty());
  const Json index = read_json_file(folder / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], table.parameter_count() * 4);
  EXPECT_EQ(index["weight_map"].size(), table.tensors().size());
  EXPECT_EQ(index["weight_map"]["model.norm.weight"], shards.back().file_name);
}

}  // namespace
}  // namespace satune
