// Everything a run is told. One table (settings_table.cpp) holds each field's JSON key, type, default,
// allowed values and meaning; parsing, overrides, --print-config, the resolved config.json of a run folder
// and the check of a resume are all driven by it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"
#include "data/files/error.h"
#include "data/files/json.h"
#include "data/records.h"
#include "model/files/sharing_plan.h"

namespace satune {

enum class Precision { kFp32, kBf16, kFp16 };                     // "fp32" "bf16" "fp16"
enum class SchedulerType { kCosine, kLinear, kConstant };         // "cosine" "linear" "constant"
enum class WarmupType { kLinear, kLog };                          // "linear" "log"
enum class Checkpointing { kOff, kOn, kSelective, kAuto };        // false true "selective" "auto"
enum class NonFinitePolicy { kStop, kSkip };                      // "stop" "skip"
enum class DeviceChoice { kAuto, kCpu, kCuda };                   // "auto" "cpu" "cuda"
enum class ExportDtype { kAuto, kFloat32, kBfloat16, kFloat16 };  // "auto" "float32" "bfloat16" "float16"
enum class OptimizerOffload { kNone, kCpu };                      // "none" "cpu"
enum class MasterWeights { kFp32, kSplit, kNone };                // "fp32" "split" "none"
enum class AttnImplementation { kAuto, kCudnn, kFlash, kEager };  // "auto" "cudnn" "flash" "eager"
enum class OptimizerMoments { kFp32, kBf16, k8Bit };              // "fp32" "bf16" "8bit"

/// Defaults are those of the JSON keys of the same name (nested keys: "sharing.layers" is sharing_layers).
/// A Settings that came out of read_settings() is resolved: of two alternative keys exactly one is set.
struct Settings {
  // Model.
  std::string model_name_or_path;  ///< directory or hub id; required
  std::string output_dir;          ///< the run folder; required
  std::string sharing_layers;      ///< "23-26"; "" = the checkpoint's own plan (none if dense)
  AnchorRule sharing_anchor = AnchorRule::kBefore;
  std::vector<std::string> unfrozen_parameters;  ///< patterns for match_unfrozen(); empty = all

  // Data.
  std::string train_file;                ///< required
  std::optional<std::string> eval_file;  ///< alternative to val_size
  double val_size = 0.01;  ///< share of the records, or a number of them >= 1; 0 with eval_file or for none
  std::string prompt_template = "alpaca";  ///< key "template": a name or a file
  ColumnNames columns;                     ///< keys "columns.instruction" ...
  int64_t max_length = 4096;               ///< tokens of a row
  Overlength overlength = Overlength::kDrop;
  bool packing = true;
  bool shuffle = true;
  std::optional<std::string> token_cache_dir;  ///< unset = default_token_cache_directory(); "" = no cache

  // Length of the run and batch.
  std::optional<double> num_train_epochs = 2.0;  ///< unset when max_steps is set
  std::optional<int64_t> max_steps;
  int64_t per_device_train_batch_size = 1;  ///< rows of a micro-batch
  int64_t gradient_accumulation_steps = 2;

  // Optimizer and schedule.
  double learning_rate = 2e-5;
  SchedulerType lr_scheduler_type = SchedulerType::kCosine;
  std::optional<double> warmup_ratio = 0.03;  ///< unset when warmup_steps is set; see warmup_step_count()
  std::optional<double> warmup_steps;         ///< < 1: a ratio, as in transformers 5
  WarmupType lr_warmup_type =
      WarmupType::kLinear;          ///< linear: peak * t; log: peak * start^(1 - t), t = step/warmup
  double warmup_start_ratio = 0.0;  ///< share of the peak at step 0 of the warm-up; log needs > 0
  double min_lr_ratio = 0.0;        ///< cosine and linear end at this share of the peak
  double weight_decay = 0.0;
  double adam_beta1 = 0.9, adam_beta2 = 0.999, adam_epsilon = 1e-8;
  double max_grad_norm = 1.0;  ///< 0 = no clipping

  // Machine.
  DeviceChoice device = DeviceChoice::kAuto;
  std::optional<int64_t> num_threads;  ///< unset = all that the process may use
  Precision precision = Precision::kBf16;
  bool fp8 = false;                                                    ///< model/ops/fp8.h; bf16 runs alone
  AttnImplementation attn_implementation = AttnImplementation::kAuto;  ///< trainer/attention_choice.h
  bool deterministic = true;  ///< on a card, the same bits from the same run
  Checkpointing gradient_checkpointing = Checkpointing::kOn;
  bool activation_offloading = false;       ///< model/activation_offload.h
  std::optional<int64_t> zero_stage;        ///< 0-3; unset = "auto". One process: all the same
  std::optional<int64_t> shard_group_size;  ///< ranks that hold one model together; unset = all
  OptimizerOffload optimizer_offload = OptimizerOffload::kNone;
  MasterWeights master_weights = MasterWeights::kFp32;           ///< trainer/optimizer_state.h has both
  OptimizerMoments optimizer_moments = OptimizerMoments::kFp32;  ///< tables
  int64_t ddp_timeout = 1800;                                    ///< seconds that a collective may take
  int64_t heartbeat_timeout = 30;  ///< seconds without a sign of life after which a rank counts as lost

  // The run.
  uint64_t seed = 42;
  int64_t logging_steps = 1;        ///< plain progress lines every N steps
  int64_t eval_steps = 100;         ///< 0 = only at the end
  int64_t eval_samples = 0;         ///< held-out records answered at each evaluation, in samples.jsonl
  int64_t save_steps = 200;         ///< 0 = only at the end
  double save_minutes = 0.0;        ///< also every so many minutes; 0 = no
  int64_t save_total_limit = 2;     ///< newest snapshots kept (at least 1)
  bool keep_best = false;           ///< the one of lowest eval_loss is kept besides
  std::optional<int64_t> patience;  ///< evaluations without a better eval_loss before stopping
  bool async_save = false;          ///< periodic snapshots are written while training goes on
  bool save_only_model = false;     ///< snapshots without optimizer state: not resumable
  bool export_at_end = true;
  bool export_every_epoch = false;
  ExportDtype export_dtype = ExportDtype::kAuto;  ///< auto = the loaded checkpoint's
  std::string resume = "auto";                    ///< "auto" | "never" | a snapshot folder
  bool allow_changes = false;  ///< resume although settings that change the trajectory differ
  NonFinitePolicy nonfinite = NonFinitePolicy::kStop;

  /// Who said it, for errors that show only when the run is planned; no settings themselves.
  std::string source;                  ///< file of the config; "" = made by hand
  std::vector<std::string> overrides;  ///< keys given on the command line
};

/// An error about a setting as its user should see it: a message that begins with a key ("warmup_steps: found
/// ...") gets the config's name, or "command line", in front. Other messages stay.
std::string name_source(const Settings& settings, std::string_view message);

/// Runs `work`; what it throws as BadInput goes through name_source().
template <class Work>
auto naming_source(const Settings& settings, const Work& work) {
  try {
    return work();
  } catch (const BadInput& error) {
    throw BadInput(name_source(settings, error.what()));
  }
}

/// One row of the table as others may see it.
struct SettingInfo {
  std::string key;                  ///< "sharing.layers"
  std::string type;                 ///< "number", "string", "true | false | \"selective\" | \"auto\"" ...
  std::string meaning;              ///< one line
  bool changes_trajectory = false;  ///< a resume with another value would not continue the same run
  /// Values that compute the same numbers all the same: a change from one to another is none.
  std::vector<std::string> interchangeable = {};
};
const std::vector<SettingInfo>& setting_infos();

/// Reads CONFIG.json (`//` comments allowed), applies "a.b=c" overrides (a leading "--" is dropped, '-' in a
/// key reads as '_') and resolves alternatives. Throws BadInput naming file, key, found and expected: unknown
/// keys (with the nearest known one, or what another trainer's key is called here), mistyped values, values
/// out of range, both of two alternatives, required keys that are missing, what is not supported yet.
/// Relative paths are taken from the current directory. Touches no other file.
Settings read_settings(const std::filesystem::path& config, const std::vector<std::string>& overrides);

/// The same from text; `source` names it in errors.
Settings parse_settings(std::string_view text, std::string_view source,
                        const std::vector<std::string>& overrides = {});

/// Defaults and overrides without a file; required keys may be missing. For --print-config.
Settings default_settings(const std::vector<std::string>& overrides);

/// The resolved config: every field, readable by read_settings() again.
Json settings_json(const Settings& settings);

/// Every field with its meaning as a // comment: a usable config in itself.
std::string print_config(const Settings& settings);

/// Fields that change the trajectory and differ, one "key: OLD -> NEW" each. `old` is a saved
/// settings_json(). A key that `old` lacks (written by an older build) counts as its default.
std::vector<std::string> trajectory_changes(const Json& old, const Settings& now);

/// Steps of warm-up of a run of `total_steps`: ceil(ratio * total_steps), at most total_steps - 1, or
/// warmup_steps. Throws BadInput when warmup_steps is not shorter than the run.
int64_t warmup_step_count(const Settings& settings, int64_t total_steps);

/// Ranks of `world_size` that hold one model together. Throws BadInput when the setting does not divide them.
int64_t shard_group_size(const Settings& settings, int64_t world_size);

}  // namespace satune
