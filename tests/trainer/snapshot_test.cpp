// Snapshots as files: every failing call, damage, keeping and deleting.
#include "trainer/snapshot.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <mutex>

#include "data/files/error.h"
#include "tests/files/faulty_file_ops.h"
#include "tests/model_configs.h"
#include "tests/trainer/rank_threads.h"
#include "tests/trainer/tiny_run.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/run_state.h"
#include "trainer/snapshot_store.h"
#include "trainer/snapshot_writer.h"

namespace satune::trainer_test {
namespace fs = std::filesystem;
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig small_config() {
  return model_configs::config_of(
      {.vocabulary = 3000, .hidden = 8, .ffn = 8, .layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 4});
}

/// A new one for every save: keys of a run are written once.
Coordinator& alone() {
  static std::unique_ptr<Coordinator> coordinator;
  coordinator = make_solo_coordinator([] { return std::string(); });
  return *coordinator;
}

struct SmallOptimizer {
  TensorTable table{small_config()};
  ParameterBuffers weights{table, std::vector<bool>(table.tensors().size(), true), at::kFloat, at::kCPU};
  AdamW optimizer{weights, {}};
};

TEST(Snapshot, NamesAreStrict) {
  EXPECT_EQ(snapshot_name(1234), "step-00001234");
  EXPECT_EQ(snapshot_step("step-00001234"), 1234);
  EXPECT_EQ(snapshot_step(snapshot_name(123456789)), 123456789);
  for (const char* other :
       {"step-1234", "step-00001234.damaged", ".step-00001234.tmp-7", "step-0000123x", "step-"}) {
    EXPECT_EQ(snapshot_step(other), -1) << other;
  }
}

TEST(Snapshot, EveryFailingCallLeavesNoneOrAWholeOne) {
  const SmallOptimizer small;
  FaultyFileOps none(0, 0);
  const TemporaryDirectory counted;
  write_snapshot(counted / "snapshots/step-00000001", source_of(small.optimizer), {}, alone(), Json::object(),
                 1, false, none);
  ASSERT_GT(none.calls(), 20);
  for (int call = 1; call <= none.calls(); ++call) {
    const TemporaryDirectory directory;
    const fs::path folder = directory / "snapshots/step-00000001";
    FaultyFileOps faulty(call, ENOSPC);
    try {
      write_snapshot(folder, source_of(small.optimizer), {}, alone(), Json::object(), 1, false, faulty);
      EXPECT_EQ(faulty.failed(), "close") << "call " << call << " failed and nobody noticed";
    } catch (const EnvironmentError& error) {
      EXPECT_THAT(error.what(), HasSubstr("No space left on device"));
    }
    if (fs::exists(folder)) {
      EXPECT_NO_THROW(verify_checksums(folder, read_manifest(folder))) << "call " << call;
    }
    if (fs::exists(folder.parent_path())) {
      for (const std::string& name : entries_of(folder.parent_path())) EXPECT_EQ(name, "step-00000001");
    }
  }
}

// One of the model alone, which a stop in the next step saves again with what a resume needs.
TEST(Snapshot, AFailingCallLeavesTheEarlierOneOfTheStep) {
  const SmallOptimizer small;
  int kept = 0;
  const auto holds_optimizer = [](const fs::path& folder) {
    verify_checksums(folder, read_manifest(folder));
    return read_json_file(folder / kStateFile).at("has_optimizer_state").get<bool>();
  };
  for (int call = 1;; ++call) {
    const TemporaryDirectory temporary;
    const fs::path folder = temporary / "snapshots/step-00000001";
    write_snapshot(folder, source_of(small.optimizer), {}, alone(), Json::object(), 1, true,
                   posix_file_ops());
    FaultyFileOps faulty(call, ENOSPC);
    try {
      write_snapshot(folder, source_of(small.optimizer), {}, alone(), Json::object(), 1, false, faulty);
    } catch (const EnvironmentError&) {
    }
    const bool replaced = holds_optimizer(folder);
    if (!replaced) ++kept;
    // The earlier one stays beside it, for the next start to remove, where the exchange may not last.
    const bool failed = faulty.calls() >= call;
    if (!replaced || !failed) {
      EXPECT_THAT(entries_of(folder.parent_path()), ElementsAre("step-00000001")) << faulty.failed();
    }
    if (failed) continue;
    EXPECT_TRUE(replaced) << "nothing failed";
    break;
  }
  EXPECT_GT(kept, 20);
}

TEST(Snapshot, ManifestNoticesEveryDamage) {
  const SmallOptimizer small;
  const auto damaged_by = [&](const auto& damage) {
    const TemporaryDirectory directory;
    const fs::path folder = directory / "step-00000001";
    write_snapshot(folder, source_of(small.optimizer), {}, alone(), Json::object(), 1, false,
                   posix_file_ops());
    damage(folder);
    verify_checksums(folder, read_manifest(folder));
  };
  EXPECT_NO_THROW(damaged_by([](const fs::path&) {}));
  EXPECT_THROW(damaged_by([](const fs::path& f) { fs::remove(f / kManifestFile); }), BadInput);
  EXPECT_THROW(damaged_by([](const fs::path& f) { fs::remove(f / kStateFile); }), BadInput);
  EXPECT_THROW(damaged_by([](const fs::path& f) { fs::resize_file(f / rank_file_name(0), 100); }), BadInput);
  EXPECT_THROW(damaged_by([](const fs::path& f) { fs::resize_file(f / kManifestFile, 40); }), BadInput);
  EXPECT_THROW(damaged_by([](const fs::path& f) {
                 std::fstream file(f / rank_file_name(0), std::ios::in | std::ios::out | std::ios::binary);
                 file.seekp(-3, std::ios::end);
                 file.put('x');
               }),
               BadInput);
}

/// What a resume needs of state.json.
Json small_state() {
  return {{"progress", {{"step", 1}}}, {"base_model", "nowhere"},
          {"frozen", Json::object()},  {"machine", Json::object()},
          {"data_fingerprint", ""},    {"model", model_config_json(small_config())},
          {"settings", Json::object()}};
}

void fill_by_index(const AdamW& optimizer, const World& world) {
  for (size_t part = 0; part < std::size(kOptimizerParts); ++part) {
    for (int segment = 0; segment < optimizer.weights().num_segments(); ++segment) {
      const at::Tensor& shard = optimizer.part(kOptimizerParts[part], segment);
      const ElementRange range = shard_range(optimizer.weights().flat(segment).numel(), world);
      shard.copy_(at::arange(range.begin, range.end, at::kFloat) + 1e6 * static_cast<double>(part) + segment);
    }
  }
}

void expect_written_by_index(const fs::path& whole) {
  const SnapshotReader snapshot(whole);
  snapshot.verify();
  SmallOptimizer restored, expected;
  fill_by_index(expected.optimizer, {});
  restore_optimizer(restored.optimizer, snapshot);
  for (int i = 0; i < restored.weights.num_segments(); ++i) {
    for (const ShardPiece& piece : shard_pieces(restored.weights, i, {})) {  // padding is not stored
      const int64_t begin = piece.shard_offset, end = begin + piece.elements.size();
      for (const std::string_view part : kOptimizerParts) {
        EXPECT_TRUE(at::equal(restored.optimizer.part(part, i).slice(0, begin, end),
                              expected.optimizer.part(part, i).slice(0, begin, end)))
            << part;
      }
    }
  }
  fs::remove(whole / rank_file_name(1));
  EXPECT_THROW(SnapshotReader{whole}, BadInput);
}

// pain: world-size change refused.
TEST(Snapshot, WrittenByThreeRanksIsReadByOne) {
  const TemporaryDirectory directory;
  const fs::path whole = directory / snapshot_name(1);
  // At stage 0 every rank has the whole state and writes its share of it all the same.
  for (const bool replicated : {false, true}) {
    fs::remove_all(whole);
    run_as_ranks(3, [&](RankOfTest& rank) {
      SmallOptimizer small;
      const World owner = replicated ? World{} : rank.world;
      const AdamW optimizer(small.weights, {}, owner);
      fill_by_index(optimizer, owner);
      write_snapshot(whole, source_of(optimizer), {rank.world}, *rank.coordinator, small_state(), 1, false,
                     posix_file_ops());
    });
    expect_written_by_index(whole);
  }
}

/// An optimizer of bf16 weights in a memory mode, after three updates of random gradients.
struct SmallMode {
  explicit SmallMode(const StateFormat& format, const World& owner = {}, int64_t updates = 3)
      : weights(table, all(), at::kBFloat16, at::kCPU, parameter_layout(1, 2)),
        optimizer(weights, options_of(format), owner) {
    at::manual_seed(7);
    for (int64_t t = 1; t <= updates; ++t) {
      std::vector<at::Tensor> gradients;
      for (int i = 0; i < weights.num_segments(); ++i) {
        const ElementRange range = shard_range(weights.flat(i).numel(), owner);
        gradients.push_back(at::randn({weights.flat(i).numel()}).slice(0, range.begin, range.end));
      }
      optimizer.update(gradients, 1, 0.01, t);
    }
  }
  std::vector<bool> all() const { return std::vector<bool>(table.tensors().size(), true); }
  static AdamWOptions options_of(const StateFormat& format) {
    AdamWOptions options;
    options.format = format;
    return options;
  }
  TensorTable table{small_config()};
  ParameterBuffers weights;
  AdamW optimizer;
};

void expect_same_state(const SmallMode& found, const SmallMode& expected, const World& world) {
  for (const StoredPart& part : expected.optimizer.stored_parts()) {
    for (int i = 0; i < expected.weights.num_segments(); ++i) {
      for (const ShardPiece& piece : shard_pieces(expected.weights, i, world)) {
        EXPECT_TRUE(at::equal(found.optimizer.stored(part, piece.tensor, piece.elements),
                              expected.optimizer.stored(part, piece.tensor, piece.elements)))
            << part.name() << " of " << expected.table.tensors()[piece.tensor].name;
      }
    }
  }
  for (int i = 0; i < expected.weights.num_segments(); ++i) {
    const ElementRange range = shard_range(expected.weights.flat(i).numel(), world);
    EXPECT_TRUE(at::equal(found.weights.flat(i).slice(0, range.begin, range.end),
                          expected.weights.flat(i).slice(0, range.begin, range.end)));
  }
}

TEST(Snapshot, MemoryModesAreSlicedAgainCodeForCode) {
  StateFormat split, smallest, bf16;
  split.master_weights = MasterWeights::kSplit;
  split.moments = OptimizerMoments::k8Bit;
  smallest.master_weights = MasterWeights::kNone;
  smallest.moments = OptimizerMoments::k8Bit;
  bf16.master_weights = MasterWeights::kNone;
  bf16.moments = OptimizerMoments::kBf16;
  for (const StateFormat& format : {split, smallest, bf16}) {
    const TemporaryDirectory directory;
    const fs::path folder = directory / snapshot_name(1);
    run_as_ranks(3, [&](RankOfTest& rank) {
      static std::mutex one_generator;
      std::unique_lock lock(one_generator);
      const SmallMode part(format, rank.world);
      lock.unlock();
      // From a copy, as background saves are.
      const StateCopy copy(part.optimizer, rank.world);
      write_snapshot(folder, copy.source(), {rank.world}, *rank.coordinator, small_state(), 1, false,
                     posix_file_ops());
    });
    const SnapshotReader snapshot(folder);
    const SmallMode whole(format);
    EXPECT_LE(folder_bytes(folder), snapshot_bytes(whole.table, {}, whole.optimizer.stored_parts()));
    SmallMode restored(format, {}, 0);
    restore_optimizer(restored.optimizer, snapshot);
    expect_same_state(restored, whole, {});
    for (const World& half : {World{0, 2}, World{1, 2}}) {
      SmallMode part(format, half, 0);
      restore_optimizer(part.optimizer, snapshot);
      expect_same_state(part, whole, half);
    }
    // What is exported, and what a snapshot without the optimizer's state holds.
    const fs::path only_model = directory / snapshot_name(2);
    write_snapshot(only_model, source_of(whole.optimizer), {}, alone(), small_state(), 2, true,
                   posix_file_ops());
    for (const size_t tensor : {size_t{0}, whole.table.tensors().size() - 1}) {
      const int64_t numel = whole.table.tensors()[tensor].numel();
      const at::Tensor exported = SnapshotReader(only_model).elements(tensor, 0, numel);
      EXPECT_TRUE(at::equal(exported, whole.optimizer.part("master", tensor, {0, numel})));
      EXPECT_TRUE(at::equal(exported.to(at::kBFloat16), whole.weights.tensor(tensor).flatten()));
    }
  }
}

TEST(Snapshot, AStateOfAnotherShapeNamesTheKey) {
  const SmallOptimizer small;
  const auto error = [&](const std::function<void(Json&)>& change) -> std::string {
    const TemporaryDirectory directory;
    const fs::path folder = directory / snapshot_name(1);
    write_snapshot(folder, source_of(small.optimizer), {}, alone(), small_state(), 1, false,
                   posix_file_ops());
    Json state = read_json_file(folder / kStateFile);
    change(state);
    std::ofstream(folder / kStateFile) << write_json(state);
    std::vector<ManifestEntry> files;
    for (const std::string& name : {rank_file_name(0), std::string(kStateFile)})
      files.push_back({name, fs::file_size(folder / name), 0});
    std::ofstream(folder / kManifestFile) << write_json(manifest_json(1, files));
    try {
      const SnapshotReader reader(folder);
    } catch (const BadInput& bad) {
      return bad.what();
    }
    return "no error";
  };
  EXPECT_EQ(error([](Json&) {}), "no error");
  for (const char* key : {"progress", "has_optimizer_state", "model", "settings", "frozen", "machine",
                          "data_fingerprint", "base_model", "shards"}) {
    EXPECT_THAT(
        error([&](Json& state) { state.erase(key); }),
        AllOf(HasSubstr(std::string("state.json: key ") + key + ": found nothing"), HasSubstr("expected")));
  }
  EXPECT_THAT(error([](Json& state) { state["progress"]["step"] = "one"; }),
              HasSubstr("state.json: progress: key step: found the string"));
  const auto first_range = [](Json& state) -> Json& { return state["shards"][0]["ranges"].front(); };
  EXPECT_THAT(error([&](Json& state) { first_range(state) = Json::array({0}); }), HasSubstr("[begin, end)"));
  EXPECT_THAT(error([&](Json& state) {
                first_range(state) = Json::array({0, 1 << 30});
              }),
              HasSubstr("within its"));
}

TEST(SnapshotStore, CountsCompleteOnesOnly) {
  const SmallOptimizer small;
  const TemporaryDirectory directory;
  const SnapshotStore store(directory / "snapshots");
  EXPECT_TRUE(store.scan().empty());
  for (int64_t step : {1, 2, 3, 4, 5}) {
    write_snapshot(store.path_of(step), source_of(small.optimizer), {}, alone(), Json::object(), step, false,
                   posix_file_ops());
  }
  fs::resize_file(store.path_of(4) / rank_file_name(0), 10);
  const auto found = store.scan();
  ASSERT_EQ(found.size(), 5U);
  EXPECT_THAT(found[3].damage, AllOf(HasSubstr("rank-00000"), HasSubstr("10 bytes")));
  store.prune(2, 1);
  EXPECT_THAT(entries_of(store.folder()),
              ElementsAre("step-00000001", "step-00000003", "step-00000004", "step-00000005"));
  store.set_aside(store.path_of(4));
  EXPECT_EQ(store.scan().size(), 3U);
}

TEST(Snapshot, StateSurvivesTheJson) {
  RunState state;
  state.step = 7;
  state.updates = 6;
  state.num_tokens = int64_t{1} << 40;
  state.best_eval_loss = 0.1 + 0.2;
  state.loss_scale = {1024, 77};
  state.unlogged = StepMetrics{};
  state.unlogged->loss = 1.0 / 3;
  state.unlogged->grad_norm = std::nan("");
  state.unlogged->mfu = 0.1 + 0.3;
  state.unlogged->device_power_w = 412.5;
  const RunState read = parse_run_state(Json::parse(write_json(run_state_json(state))), "state.json");
  EXPECT_EQ(read.num_tokens, state.num_tokens);
  EXPECT_EQ(read.loss_scale.value, 1024);
  EXPECT_EQ(read.loss_scale.good_steps, 77);
  EXPECT_EQ(*read.best_eval_loss, *state.best_eval_loss);
  EXPECT_EQ(read.unlogged->loss, state.unlogged->loss);
  EXPECT_TRUE(std::isnan(read.unlogged->grad_norm));
  const auto error = [&](const char* key, const Json& value) -> std::string {
    Json json = run_state_json(state);
    json[key] = value;
    try {
      parse_run_state(json, "state.json");
    } catch (const BadInput& bad) {
      return bad.what();
    }
    return "no error";
  };
  EXPECT_THAT(error("updates", nullptr),
              AllOf(HasSubstr("state.json: key updates: found"), HasSubstr("expected")));
  EXPECT_THAT(error("loss_scale", "big"), HasSubstr("state.json: key loss_scale: found the string"));
  EXPECT_THAT(error("unlogged", Json::object()), HasSubstr("state.json: unlogged: key step"));
  EXPECT_EQ(read.unlogged->mfu, state.unlogged->mfu);
  EXPECT_EQ(read.unlogged->device_power_w, 412.5);
  EXPECT_FALSE(read.unlogged->device_temperature_c);
}

// pain: disk full on the last checkpoint.
TEST(RunFolder, DiskThatCannotHoldTheSnapshotsIsAnError) {
  const TemporaryDirectory directory;
  const DiskNeed need{1000, 2, 1000, 500};  // two kept, one being saved, exports
  EXPECT_NO_THROW(check_disk(directory.path(), need, 3500));
  try {
    check_disk(directory.path(), need, 3499);
    FAIL() << "accepted";
  } catch (const EnvironmentError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("3499"), HasSubstr("3500"), HasSubstr("2 snapshots")));
  }
  directory.write("snapshots/step-00000001.damaged/a", std::string(1000, 'x'));
  directory.write("export/a", std::string(1000, 'x'));
  EXPECT_THROW(check_disk(directory.path(), need, 3499), EnvironmentError)
      << "neither is deleted before the new one is there";
  directory.write("export-epoch-0001/a", std::string(400, 'x'));
  EXPECT_NO_THROW(check_disk(directory.path(), need, 3100)) << "what is saved already is not needed again";
  EXPECT_THROW(check_disk(directory.path(), need, 3099), EnvironmentError);
}

TEST(RunFolder, WhatNoRunHasLeftIsNotReplaced) {
  const TemporaryDirectory directory;
  Settings settings;
  settings.model_name_or_path = (directory / "model").string();
  directory.write("model/config.json", "{}");
  const auto error = [&](const char* folder) {
    settings.output_dir = (directory / folder).string();
    try {
      check_output_folder(settings);
    } catch (const BadInput& failure) {
      return std::string(failure.what());
    }
    return std::string();
  };
  EXPECT_EQ(error("missing"), "");
  EXPECT_THAT(error("model"), HasSubstr("the folder of the model"));
  for (const char* name : {"config.json", "data.json", "metrics.jsonl", "export/README.md",
                           "export-epoch-0001/model.safetensors", "profile/rank0.json"}) {
    const std::string folder = "used";
    directory.write(folder + "/" + name, "mine");
    EXPECT_THAT(error(folder.c_str()), HasSubstr("that no run of satune has left there")) << name;
    directory.write(folder + "/.lock", "");
    EXPECT_EQ(error(folder.c_str()), "") << name;
    std::filesystem::remove_all(directory / folder);
  }
  directory.write("logs/slurm-1.out", "what the launcher writes there before the run starts");
  EXPECT_EQ(error("logs"), "");
  directory.write("copied/config.json", "{}");
  directory.write("copied/snapshots/step-00000001/state.json", "{}");
  directory.write("copied/metrics.jsonl", "");
  EXPECT_EQ(error("copied"), "") << "a run without its hidden files";
  directory.write("again/.lock", "");
  directory.write("again/export/config.json", "{}");
  settings.model_name_or_path = (directory / "again/export").string();
  EXPECT_THAT(error("again"), HasSubstr("would replace its own model"));
  settings.export_at_end = false;
  EXPECT_EQ(error("again"), "");
}

TEST(RunFolder, OneProcessAtATime) {
  Settings settings;
  const TemporaryDirectory directory;
  settings.output_dir = (directory / "run").string();
  const RunFolder first(settings);
  EXPECT_THROW(RunFolder{settings}, BadInput);
}

TEST(Shard, RanksOwnEveryElementOnce) {
  const SmallOptimizer small;
  for (const int64_t size : {1, 2, 3, 7}) {
    std::vector<int64_t> owned(small.table.tensors().size());
    for (int64_t rank = 0; rank < size; ++rank) {
      for (int segment = 0; segment < small.weights.num_segments(); ++segment) {
        for (const ShardPiece& piece : shard_pieces(small.weights, segment, {rank, size})) {
          EXPECT_EQ(piece.elements.begin, owned[piece.tensor]);
          owned[piece.tensor] = piece.elements.end;
        }
      }
    }
    for (size_t i = 0; i < owned.size(); ++i) EXPECT_EQ(owned[i], small.table.tensors()[i].numel());
  }
  EXPECT_EQ(shard_range(10 * kShardBlock, {0, 3}).size(), 4 * kShardBlock);
  EXPECT_EQ(shard_range(10 * kShardBlock, {2, 3}).size(), 2 * kShardBlock);
}

}  // namespace
}  // namespace satune::trainer_test
