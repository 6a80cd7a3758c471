#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "data/files/error.h"
#include "data/files/json.h"
#include "model/files/safetensors.h"
#include "tests/model_files/raw_safetensors.h"
#include "tests/temporary_directory.h"

namespace satune {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kShard1 = "model-00001-of-00002.safetensors";
constexpr const char* kShard2 = "model-00002-of-00002.safetensors";

std::string shard_of(std::string_view tensor) {
  return raw_safetensors(
      fmt::format(R"({{"{}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}})", tensor), 8);
}

std::string index_of(std::initializer_list<std::pair<std::string, std::string>> entries) {
  Json index;
  index["metadata"]["total_size"] = 16;
  for (const auto& [tensor, file] : entries) index["weight_map"][tensor] = file;
  return write_json(index);
}

void write_two_shards(const TemporaryDirectory& folder) {
  folder.write(kShard1, shard_of("a"));
  folder.write(kShard2, shard_of("b"));
  folder.write(kIndex, index_of({{"a", kShard1}, {"b", kShard2}}));
}

std::string error_of(const std::filesystem::path& directory) {
  try {
    Checkpoint{directory};
  } catch (const BadInput& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Checkpoint, FingerprintSamplesLargeModels) {
  constexpr size_t kBlock = size_t{64} << 10, kBlocks = 40;
  const std::string header = fmt::format(
      R"({{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}},"b":{{"dtype":"U8","shape":[5],"data_offsets":[{0},{1}]}}}})",
      kBlocks * kBlock, kBlocks * kBlock + 5);
  const auto fingerprint = [&](size_t changed, uint64_t most_bytes, std::string_view names = "ab") {
    const TemporaryDirectory folder;
    std::string text = raw_safetensors(header, kBlocks * kBlock + 5);
    if (names != "ab") text[text.find("\"b\"") + 1] = 'c';
    text[text.size() - kBlocks * kBlock - 5 + changed] ^= 1;
    folder.write("model.safetensors", text);
    return sampled_fingerprint(Checkpoint(folder.path()), most_bytes);
  };
  const uint64_t all = kBlocks * kBlock + 5, some = all / 8 + 1;  // every eighth block
  EXPECT_EQ(fingerprint(7, all), fingerprint(7, all));
  EXPECT_THAT(fingerprint(7, all), ::testing::MatchesRegex("[0-9a-f]{8}"));
  EXPECT_NE(fingerprint(7, all), fingerprint(7, all, "ac"));
  for (const size_t changed : {size_t{3}, 9 * kBlock, kBlocks * kBlock - 1}) {
    EXPECT_NE(fingerprint(changed, all), fingerprint(7, all)) << changed;
  }
  EXPECT_EQ(fingerprint(3 * kBlock, some), fingerprint(5 * kBlock, some)) << "neither is read";
  EXPECT_NE(fingerprint(16 * kBlock, some), fingerprint(5 * kBlock, some));
  EXPECT_NE(fingerprint(kBlocks * kBlock + 2, some), fingerprint(5 * kBlock, some)) << "a tensor's start is";
}

TEST(Checkpoint, OneFile) {
  const TemporaryDirectory folder;
  folder.write("model.safetensors", shard_of("a"));
  const Checkpoint checkpoint(folder.path());
  EXPECT_THAT(checkpoint.names(), ElementsAre("a"));
  EXPECT_EQ(checkpoint.file_of("a"), folder / "model.safetensors");
  checkpoint.release(*checkpoint.find("a"));
  EXPECT_EQ(std::to_integer<char>(checkpoint.find("a")->bytes[0]), 'a');
  EXPECT_EQ(checkpoint.find("b"), nullptr);
}

TEST(Checkpoint, Shards) {
  const TemporaryDirectory folder;
  write_two_shards(folder);
  const Checkpoint checkpoint(folder.path());
  EXPECT_THAT(checkpoint.names(), ElementsAre("a", "b"));
  EXPECT_EQ(checkpoint.file_of("b"), folder / kShard2);
  EXPECT_EQ(checkpoint.find("b")->bytes.size(), 8u);
}

TEST(Checkpoint, ShardsMayBeLinksAsInTheHubsCache) {
  const TemporaryDirectory folder;
  folder.write("blobs/1234", shard_of("a"));
  std::filesystem::create_directories(folder / "snapshot");
  std::filesystem::create_symlink("../blobs/1234", folder / "snapshot" / "model.safetensors");
  EXPECT_THAT(Checkpoint(folder / "snapshot").names(), ElementsAre("a"));
}

TEST(Checkpoint, AMissingShardIsNamed) {
  const TemporaryDirectory folder;
  write_two_shards(folder);
  std::filesystem::remove(folder / kShard2);
  EXPECT_EQ(error_of(folder.path()),
            fmt::format("{}: found no file \"{}\", expected the shard that holds tensor \"b\"",
                        (folder / kIndex).string(), kShard2));
}

TEST(Checkpoint, PathsOutOfTheDirectoryAreRefused) {
  const TemporaryDirectory folder;
  write_two_shards(folder);
  folder.write("sub/x.safetensors", shard_of("b"));
  const std::string absolute = folder.write("x.safetensors", shard_of("b")).string();
  for (const std::string& path : {std::string("../x.safetensors"), absolute, std::string("sub/x.safetensors"),
                                  std::string("./x.safetensors"), std::string("..\\x"), std::string(".."),
                                  std::string("."), std::string(), std::string("x\0y", 3)}) {
    folder.write(kIndex, index_of({{"a", kShard1}, {"b", path}}));
    EXPECT_THAT(error_of(folder.path()),
                AllOf(StartsWith((folder / kIndex).string() + ": tensor \"b\": found the path "),
                      HasSubstr("expected the name of a file in the same directory")))
        << path;
  }
}

TEST(Checkpoint, AnIndexThatDoesNotFitItsShardsIsRefused) {
  const TemporaryDirectory folder;
  write_two_shards(folder);
  folder.write(kIndex, index_of({{"a", kShard1}, {"b", kShard2}, {"c", kShard2}}));
  EXPECT_THAT(error_of(folder.path()),
              AllOf(StartsWith((folder / kShard2).string() + ": tensor \"c\""), HasSubstr("found nothing")));
  // A tensor in no map.
  folder.write(kShard2, raw_safetensors(R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                        R"("extra":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                        8));
  folder.write(kIndex, index_of({{"a", kShard1}, {"b", kShard2}}));
  EXPECT_THAT(error_of(folder.path()), AllOf(StartsWith((folder / kShard2).string() + ": tensor \"extra\""),
                                             HasSubstr("found no entry in")));
  // The same tensor in two shards.
  folder.write(kShard2, raw_safetensors(R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                        R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                        8));
  EXPECT_THAT(error_of(folder.path()), AllOf(HasSubstr(kShard2), HasSubstr("tensor \"a\""),
                                             HasSubstr("expected an entry that names this file")));
}

TEST(Checkpoint, IndexesOfTheWrongKindAreRefused) {
  const TemporaryDirectory folder;
  for (const char* text : {"", "[]", "{}", R"({"weight_map":{}})", R"({"weight_map":[]})",
                           R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":"f","a":"g"}})"}) {
    folder.write(kIndex, text);
    EXPECT_THAT(error_of(folder.path()), StartsWith((folder / kIndex).string())) << text;
  }
}

TEST(Checkpoint, AMalformedShardIsNamed) {
  const TemporaryDirectory folder;
  write_two_shards(folder);
  folder.write(kShard2, "");
  EXPECT_THAT(error_of(folder.path()), StartsWith((folder / kShard2).string() + ": found an empty file"));
}

TEST(Checkpoint, PickledWeightsOnlySaysWhatToRun) {
  const TemporaryDirectory folder;
  EXPECT_THAT(error_of(folder.path()),
              HasSubstr("found neither, expected model.safetensors or model.safetensors.index.json"));
  EXPECT_THAT(error_of(folder / "none"), HasSubstr("found no directory"));
  folder.write("pytorch_model-00001-of-00002.bin", "x");
  EXPECT_THAT(error_of(folder.path()),
              AllOf(HasSubstr("found pickled weights only (pytorch_model-00001-of-00002.bin)"),
                    HasSubstr("python3 -c"),
                    HasSubstr("save_pretrained('" + folder.path().string() + "-safetensors'")));
  folder.write("consolidated.00.pth", "x");
  EXPECT_THAT(error_of(folder.path()),
              AllOf(HasSubstr("consolidated.00.pth"), HasSubstr("convert_llama_weights_to_hf")));
  folder.write("model.safetensors", shard_of("a"));
  EXPECT_EQ(error_of(folder.path()), "accepted");
}

// The shape of an 8B model: four shards of 4 GB, holes on the disk, opened without touching their data.
TEST(Checkpoint, HugeSparseShardsOpenAtOnce) {
  const TemporaryDirectory folder;
  Json index;
  for (int i = 0; i < 4; ++i) {
    const std::string name = fmt::format("model-0000{}-of-00004.safetensors", i + 1);
    const std::string tensor = fmt::format("t{}", i);
    const std::string header = fmt::format(
        R"({{"{}":{{"dtype":"BF16","shape":[500000,4096],"data_offsets":[0,4096000000]}}}})", tensor);
    const std::string bytes = raw_safetensors(header, 0);
    std::error_code error;
    std::filesystem::resize_file(folder.write(name, bytes), bytes.size() + 4096000000, error);
    if (error) GTEST_SKIP() << "needs sparse files: " << error.message();
    index["weight_map"][tensor] = name;
  }
  folder.write(kIndex, write_json(index));
  const auto start = std::chrono::steady_clock::now();
  const Checkpoint checkpoint(folder.path());
  EXPECT_EQ(checkpoint.find("t3")->bytes.size(), 4096000000u);
  EXPECT_EQ(std::to_integer<int>(checkpoint.find("t3")->bytes.back()), 0);
  // Reading the data would take many seconds.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

}  // namespace
}  // namespace satune
