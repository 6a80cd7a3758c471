#include "trainer/analysis_models.h"

#include <ATen/ATen.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "data/files/error.h"
#include "trainer/snapshot.h"
#include "trainer/snapshot_reader.h"
#include "trainer/snapshot_store.h"
#include "trainer/trained_text.h"

namespace satune {
namespace fs = std::filesystem;
namespace {

class DirectoryModel final : public AnalysisModel {
 public:
  DirectoryModel(std::string name, const std::string& precision, at::Device device) : name_(std::move(name)) {
    ModelRequest request;
    request.name_or_path = name_;
    request.precision = precision;
    request.device = device;
    source_ = find_model(request);
    tokenizer_ = load_model_tokenizer(source_.directory, source_.config);
  }
  const std::string& name() const override { return name_; }
  std::optional<int64_t> step() const override { return std::nullopt; }
  const ModelConfig& config() const override { return source_.config; }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  PromptTemplate prompt_template(const std::optional<std::string>& name) const override {
    return load_model_template(source_, name, *tokenizer_);
  }
  Llama load() const override { return load_model(source_); }

 private:
  std::string name_;
  ModelSource source_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

class SnapshotModel final : public AnalysisModel {
 public:
  SnapshotModel(std::string name, const fs::path& folder, at::ScalarType type, at::Device device)
      : name_(std::move(name)),
        snapshot_(folder),
        tokenizer_(load_tokenizer(snapshot_.base_model())),
        type_(type),
        device_(device) {}
  const std::string& name() const override { return name_; }
  std::optional<int64_t> step() const override { return snapshot_.step(); }
  const ModelConfig& config() const override { return snapshot_.config(); }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }
  PromptTemplate prompt_template(const std::optional<std::string>& name) const override {
    PromptTemplate result = name ? PromptTemplate::load(*name) : trained_template();
    result.check(*tokenizer_);
    return result;
  }
  Llama load() const override {
    snapshot_.verify();
    Llama model(snapshot_.config(), {}, type_, device_);
    constexpr int64_t kBlock = int64_t{1} << 24;  // elements that are in memory twice
    for (size_t i = 0; i < model.table().tensors().size(); ++i) {
      const at::Tensor flat = model.weights().tensor(i).view(-1);
      for (int64_t begin = 0; begin < flat.numel(); begin += kBlock) {
        const int64_t count = std::min(kBlock, flat.numel() - begin);
        flat.narrow(0, begin, count).copy_(snapshot_.elements(i, begin, count));
      }
    }
    return model;
  }

 private:
  PromptTemplate trained_template() const {
    TrainedText text = read_trained_text(snapshot_);
    return text.format == DataFormat::kText ? PromptTemplate::load("alpaca")
                                            : std::move(text.prompt_template);
  }

  std::string name_;
  SnapshotReader snapshot_;
  std::unique_ptr<Tokenizer> tokenizer_;
  at::ScalarType type_;
  at::Device device_;
};

at::ScalarType snapshot_type(const std::string& precision) {
  if (precision == "auto" || precision == "fp32") return at::kFloat;
  if (precision == "bf16") return at::kBFloat16;
  throw bad_input("--precision", "\"" + precision + "\"", "fp32, bf16 or auto");
}

}  // namespace

std::vector<std::unique_ptr<AnalysisModel>> find_analysis_models(const std::vector<std::string>& names,
                                                                 const std::string& precision,
                                                                 at::Device device) {
  std::vector<std::unique_ptr<AnalysisModel>> models;
  for (const std::string& name : names) {
    std::error_code error;
    const fs::path given(name), snapshots = given / kSnapshotFolder;
    const size_t before = models.size();
    if (fs::is_directory(snapshots, error)) {
      for (const StoredSnapshot& stored :
           SnapshotStore(snapshots, posix_file_ops(), SnapshotStore::Access::kLook).scan()) {
        if (stored.damage.empty())
          models.push_back(
              std::make_unique<SnapshotModel>(name, stored.folder, snapshot_type(precision), device));
        else
          spdlog::warn("{} is left out: {}", stored.folder.string(), stored.damage);
      }
      if (models.size() == before)
        throw bad_input(snapshots.string(), "no complete snapshot", "a run folder with one, or a model");
    } else if (fs::exists(given / kManifestFile, error)) {
      models.push_back(std::make_unique<SnapshotModel>(name, given, snapshot_type(precision), device));
    } else {
      models.push_back(std::make_unique<DirectoryModel>(name, precision, device));
    }
  }
  return models;
}

}  // namespace satune
