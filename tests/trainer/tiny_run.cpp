#include "tests/trainer/tiny_run.h"

#include <fmt/format.h>

#include <sstream>

#include "data/random.h"
#include "data/tokenizer.h"
#include "model/parameters.h"
#include "tests/model_configs.h"
#include "trainer/snapshot.h"

namespace satune::trainer_test {
namespace fs = std::filesystem;
namespace {

std::string words(RandomStream& random, uint64_t count) {
  static const std::vector<std::string> kWords = {"river", "stone", "seven", "cloud", "green",
                                                  "quick", "light", "north", "table", "music"};
  std::string text;
  for (uint64_t i = 0; i < count; ++i) text += (i > 0 ? " " : "") + kWords[random.below(kWords.size())];
  return text;
}

void write_records(const fs::path& path, int records) {
  RandomStream random(3, "tiny records");
  Json list = Json::array();
  for (int i = 0; i < records; ++i) {
    list.push_back({{"instruction", words(random, 1 + random.below(4))},
                    {"input", i % 3 == 0 ? words(random, 2) : ""},
                    {"output", words(random, 1 + random.below(6))}});
  }
  std::ofstream(path) << list.dump();
}

void write_model(const fs::path& path, const fs::path& tokenizer, bool tied, double head_scale) {
  ModelConfig config = model_configs::config_of(
      {.vocabulary = 320, .hidden = 32, .ffn = 48, .layers = 4, .heads = 4, .kv_heads = 2, .head_dim = 8});
  config.tie_word_embeddings = tied;
  config.max_position_embeddings = 512;
  Weights weights(TensorTable(config), {}, at::kFloat, at::kCPU);
  initialise_weights(weights, 0.05, 11);
  if (!tied) weights.tensor("lm_head.weight").mul_(head_scale);
  ExportOptions options;
  options.tokenizer_source = tokenizer;
  options.eos_token_ids = {2};
  export_model(
      path, config, weights.table, [&](size_t i) { return weights.tensor(i); }, DType::kF32, options);
}

}  // namespace

TinyRun::TinyRun(int records, bool tied, double head_scale) {
  std::vector<std::string> texts;
  RandomStream random(5, "tiny tokenizer");
  for (int i = 0; i < 200; ++i) texts.push_back(words(random, 12) + " instruction: response, task!");
  const fs::path tokenizer = directory_ / "tokenizer";
  fs::create_directories(tokenizer);
  SentencePieceTraining training;
  training.vocab_size = 300;
  train_sentencepiece(texts, training, tokenizer);
  write_model(model(), tokenizer, tied, head_scale);
  write_records(data(), records);
}

std::vector<std::string> TinyRun::overrides(const std::string& output_name,
                                            const std::vector<std::string>& more) const {
  std::vector<std::string> all = {"model_name_or_path=" + model().string(),
                                  "train_file=" + data().string(),
                                  "output_dir=" + output(output_name).string(),
                                  "token_cache_dir=" + (directory_ / "cache").string(),
                                  "sharing.layers=2-3",
                                  "max_length=512",
                                  "packing=false",
                                  "max_steps=10",
                                  "per_device_train_batch_size=2",
                                  "gradient_accumulation_steps=2",
                                  "learning_rate=0.01",
                                  "warmup_steps=2",
                                  "weight_decay=0.1",
                                  "val_size=0.1",
                                  "eval_steps=0",
                                  "save_steps=0",
                                  "precision=fp32",
                                  "device=cpu",
                                  "num_threads=1",
                                  "export_at_end=false"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

Settings TinyRun::settings(const std::string& output_name, const std::vector<std::string>& more) const {
  return parse_settings("{}", "test", overrides(output_name, more));
}

int TinyRun::train(const std::string& output_name, const std::vector<std::string>& more, FileOps& ops) const {
  TrainOptions options;
  options.file_ops = &ops;
  return run_training(settings(output_name, more), options);
}

std::vector<Json> metric_rows(const fs::path& run_folder) {
  std::istringstream lines(content_of(run_folder / "metrics.jsonl"));
  std::vector<Json> rows;
  for (std::string line; std::getline(lines, line);) rows.push_back(Json::parse(line));
  return rows;
}

std::vector<std::string> repeatable_rows(const fs::path& run_folder) {
  std::vector<std::string> rows;
  for (const Json& row : metric_rows(run_folder)) {
    std::string text;
    for (const char* key : {"step", "loss", "grad_norm", "learning_rate", "epoch", "num_tokens",
                            "mean_token_accuracy", "eval_loss"}) {
      text += fmt::format("{}={} ", key, row.contains(key) ? row.at(key).dump() : "-");
    }
    rows.push_back(text);
  }
  return rows;
}

std::string snapshot_tensors(const fs::path& run_folder, int64_t step) {
  return content_of(run_folder / kSnapshotFolder / snapshot_name(step) / rank_file_name(0));
}

std::vector<std::string> snapshots_of(const fs::path& run_folder) {
  return entries_of(run_folder / kSnapshotFolder);
}

}  // namespace satune::trainer_test
