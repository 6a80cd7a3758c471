// What `satune eval` can measure. A task reads and encodes its data at once, so that bad input shows before
// any weight is loaded, and then works through items, in whatever order and over however many ranks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/files/json.h"
#include "data/prompt_template.h"
#include "data/tokenizer.h"
#include "model/llama.h"

namespace satune {

struct TaskOptions {
  ColumnNames columns = {};   ///< keys of the records
  int64_t max_positions = 0;  ///< of the model: prompt and answer together; 0 = no bound
  int64_t max_length = 2048;  ///< tokens of a record or window; longer records are left out
  std::optional<int64_t> max_records = std::nullopt;  ///< of those that fit, in file order
  int64_t batch_size = 0;                             ///< items that share a forward pass; 0 = by tokens
  int64_t batch_tokens = 2048;                        ///< of a forward pass where batch_size is 0
  int64_t cache_tokens = 8192;                        ///< of all texts in the making where batch_size is 0
  int64_t stride = 0;                                 ///< of perplexity's windows; 0 = max_length
  int64_t max_new_tokens = 256;                       ///< of exact_match's answers
  std::vector<int64_t> stop_ids = {};                 ///< that end exact_match's answers
  std::optional<int64_t> num_fewshot = std::nullopt;  ///< of questions; nothing = the task's own number
  std::optional<int64_t> limit = std::nullopt;        ///< first documents of each benchmark (of each subject)
};

/// What came of one item. `result` is an object that metrics() reads; it goes through JSON unchanged.
struct ItemResult {
  int64_t item = 0;
  Json result = {};
  int64_t tokens = 0;  ///< that went through the model for it, for the speed
};
using ItemSink = std::function<void(ItemResult)>;

class Task {
 public:
  virtual ~Task() = default;

  virtual int64_t items() const = 0;

  /// Works through the items [0, items()) that are listed and hands over each result as it comes, in any
  /// order.
  virtual void run(Llama& model, const std::vector<int64_t>& items, const ItemSink& done) const = 0;

  /// {metric: value, ..., "n": items}, of the results of all items, in their order.
  virtual Json metrics(const std::vector<Json>& results) const = 0;

  /// What metrics() reads of an item's result, each key with a value of its kind: a number, or an array of as
  /// many numbers. Results out of a file are held against it.
  virtual Json result_form(int64_t item) const = 0;

  /// Changes whenever an item's result could, for the same model. Holds nothing of the model's own, such as
  /// its stop ids: two models that answer the same questions have the same.
  virtual std::string fingerprint() const = 0;
};

/// run() over all items, in their order.
std::vector<Json> run_all_items(const Task& task, Llama& model);

/// Names that make_task() takes, with what each reads.
const std::vector<std::string>& task_names();

/// Whether the task puts its records through a template. Throws BadInput for an unknown name (with the
/// nearest known one).
bool task_uses_template(std::string_view name);

/// Throws BadInput for an unknown name, and for data that cannot be read or holds nothing to measure.
/// `tokenizer` and `prompt_template` must outlive the task; the template may be nullptr for a task that does
/// not use one.
std::unique_ptr<Task> make_task(std::string_view name, const std::filesystem::path& data,
                                const TaskOptions& options, const Tokenizer& tokenizer,
                                const PromptTemplate* prompt_template);

/// loss (mean -log p per target token), loss_stderr (over records), tokens (targets), over_length, n
/// (records). Empty outputs are kept: their end token is a target.
std::unique_ptr<Task> make_response_loss(const std::filesystem::path& data, const TaskOptions& options,
                                         const Tokenizer& tokenizer, const PromptTemplate& prompt_template);

/// perplexity = exp(loss), loss = sum of -log p(token) / tokens over the windows of perplexity_windows.h,
/// each with a _stderr (over windows, as a ratio of sums; neighbouring windows of one text are taken as drawn
/// apart); tokens (predicted ones), n (windows). Every document (a .txt file is one, each record of JSONL
/// with `text` another) begins with BOS where the tokenizer adds one, and all its tokens are predicted;
/// without a BOS all but its first.
std::unique_ptr<Task> make_perplexity(const std::filesystem::path& data, const TaskOptions& options,
                                      const Tokenizer& tokenizer);

/// exact_match: share of records whose greedy answer equals the record's output after trimming white
/// space (Unicode's, as Python's strip()) from both ends, case-sensitive; exact_match_stderr; over_length; n.
std::unique_ptr<Task> make_exact_match(const std::filesystem::path& data, const TaskOptions& options,
                                       const Tokenizer& tokenizer, const PromptTemplate& prompt_template);

}  // namespace satune
