// What `satune analyze MODEL ...` names: Hugging Face directories, single snapshots, and run folders, which
// stand for every complete snapshot in them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/prompt_template.h"
#include "data/tokenizer.h"
#include "evaluation/model_loader.h"
#include "model/llama.h"

namespace satune {

/// A model that is found, its config read and its tokenizer loaded; no weights yet.
class AnalysisModel {
 public:
  virtual ~AnalysisModel() = default;
  virtual const std::string& name() const = 0;
  virtual std::optional<int64_t> step() const = 0;  ///< of a snapshot
  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  /// The template of that name or file; without one, what the model was trained with, else "alpaca".
  virtual PromptTemplate prompt_template(const std::optional<std::string>& name) const = 0;
  virtual Llama load() const = 0;
};

/// In the order given, snapshots by step. `precision` and `device` as of ModelRequest; snapshots are fp32
/// with "auto". Throws BadInput where a name is no model, or a folder holds no complete snapshot.
std::vector<std::unique_ptr<AnalysisModel>> find_analysis_models(const std::vector<std::string>& names,
                                                                 const std::string& precision,
                                                                 at::Device device);

}  // namespace satune
