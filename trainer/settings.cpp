#include "trainer/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "data/files/error.h"
#include "data/files/mapped_file.h"
#include "trainer/settings_field.h"

namespace satune {
namespace {

constexpr std::string_view kCommandLine = "command line";

// A value somebody gave, and where.
struct Given {
  Json value;
  std::string where;  // "run.json: learning_rate"
  bool from_override = false;
};
using GivenByKey = std::map<std::string, Given, std::less<>>;

// Of each pair at most one may be given. Giving one on the command line replaces the other of the file.
constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kAlternatives = {{
    {"num_train_epochs", "max_steps"},
    {"warmup_ratio", "warmup_steps"},
    {"eval_file", "val_size"},
}};

bool is_group(std::string_view key) {
  const std::string prefix = std::string(key) + ".";
  return std::any_of(settings_table().begin(), settings_table().end(),
                     [&](const Field& field) { return field.info.key.starts_with(prefix); });
}

std::string members_of(std::string_view group) {
  std::string members;
  for (const Field& field : settings_table()) {
    if (!field.info.key.starts_with(std::string(group) + ".")) continue;
    members += (members.empty() ? "" : ", ") + field.info.key.substr(group.size() + 1);
  }
  return members;
}

[[noreturn]] void refuse_unknown(std::string_view source, std::string_view key) {
  // The last part alone too: "sharing.layer_ids" is looked up as such, "train.lr" as "lr".
  const std::string_view last = key.substr(key.rfind('.') == std::string_view::npos ? 0 : key.rfind('.') + 1);
  std::string expected(synonym_of(key));
  if (expected.empty()) expected = synonym_of(last);
  if (expected.empty()) {
    std::vector<std::string> known;
    for (const Field& field : settings_table()) known.push_back(field.info.key);
    expected = nearest_name(key, known);
    if (expected.empty()) expected = nearest_name(last, known);
  }
  if (expected.empty()) expected = "one of those that satune train --print-config lists";
  throw bad_input(source, fmt::format("the unknown key {}", Json(std::string(key)).dump()), expected);
}

void give(GivenByKey& given, const std::string& key, Json value, std::string_view source) {
  if (find_field(key) == nullptr) refuse_unknown(source, key);
  const auto [at, is_new] =
      given.emplace(key, Given{std::move(value), fmt::format("{}: {}", source, key), false});
  if (!is_new) throw bad_input(source, fmt::format("{} twice", at->first), "it once");
}

GivenByKey read_file_values(const Json& config, std::string_view source) {
  if (!config.is_object()) throw bad_input(source, describe_json(&config), "an object of settings");
  if (config.contains("model_type"))
    throw bad_input(source, "a model's config.json (the key \"model_type\")",
                    "settings of a run, with the model's folder or file as model_name_or_path");
  GivenByKey given;
  for (const auto& [key, value] : config.items()) {
    if (find_field(key) != nullptr || !is_group(key)) {
      give(given, key, value, source);
      continue;
    }
    if (value.is_null()) continue;
    if (!value.is_object()) {
      throw bad_input(fmt::format("{}: {}", source, key), describe_json(&value),
                      fmt::format("an object of {}", members_of(key)));
    }
    for (const auto& [member, inner] : value.items()) give(given, key + "." + member, inner, source);
  }
  return given;
}

void apply_override(GivenByKey& given, std::string_view text) {
  std::string_view rest = text;
  if (rest.starts_with("--")) rest.remove_prefix(2);
  const size_t equals = rest.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    throw bad_input(kCommandLine, fmt::format("\"{}\"", text), "a setting as key=value");
  }
  std::string key(rest.substr(0, equals));
  std::replace(key.begin(), key.end(), '-', '_');
  const Field* field = find_field(key);
  if (field == nullptr && is_group(key)) {
    throw bad_input(kCommandLine, fmt::format("\"{}\"", text),
                    fmt::format("{}.<{}>=value", key, members_of(key)));
  }
  if (field == nullptr) refuse_unknown(kCommandLine, key);
  const std::string where = fmt::format("{}: {}", kCommandLine, key);
  Json value = field->parse_text(rest.substr(equals + 1), where);
  // val_size 0 is no rival of an eval_file: it is what goes with one.
  const bool no_split = key == "val_size" && value == 0;
  for (const auto& [first, second] : kAlternatives) {
    const std::string_view other = key == first ? second : key == second ? first : std::string_view{};
    const auto found = other.empty() ? given.end() : given.find(other);
    if (found != given.end() && !found->second.from_override && !no_split) given.erase(found);
  }
  given.insert_or_assign(key, Given{std::move(value), where, true});
}

bool is_given(const GivenByKey& given, std::string_view key) {
  const auto found = given.find(key);
  return found != given.end() && !found->second.value.is_null();
}

void resolve_alternatives(Settings& settings, const GivenByKey& given, std::string_view source) {
  for (const auto& [first, second] : kAlternatives) {
    const bool no_split = second == "val_size" && settings.val_size == 0;
    if (is_given(given, first) && is_given(given, second) && !no_split) {
      throw bad_input(source, fmt::format("both {} and {}", first, second), "one of them");
    }
  }
  if (settings.max_steps) settings.num_train_epochs.reset();
  if (settings.warmup_steps) settings.warmup_ratio.reset();
  if (settings.eval_file) settings.val_size = 0;
  const Settings defaults;
  if (!settings.max_steps && !settings.num_train_epochs)
    settings.num_train_epochs = defaults.num_train_epochs;
  if (!settings.warmup_steps && !settings.warmup_ratio) settings.warmup_ratio = defaults.warmup_ratio;
}

std::string where_of(const std::string& key, const GivenByKey& given, std::string_view source) {
  const auto found = given.find(key);
  return found == given.end() ? fmt::format("{}: {}", source, key) : found->second.where;
}

void check_required(const Settings& settings, const GivenByKey& given, std::string_view source) {
  for (const Field& field : settings_table()) {
    const std::string& key = field.info.key;
    if (!field.required || !field.get(settings).get<std::string>().empty()) continue;
    throw bad_input(where_of(key, given, source), given.contains(key) ? "an empty string" : "nothing",
                    field.info.meaning);
  }
}

void check_together(const Settings& settings, const GivenByKey& given, std::string_view source) {
  const auto where = [&](const std::string& key) { return where_of(key, given, source); };
  if (settings.lr_warmup_type == WarmupType::kLog && settings.warmup_start_ratio <= 0) {
    throw bad_input(where("warmup_start_ratio"), fmt::format("{}", settings.warmup_start_ratio),
                    "a number > 0, because lr_warmup_type is \"log\"");
  }
  if (settings.val_size >= 1 && settings.val_size != std::floor(settings.val_size)) {
    throw bad_input(where("val_size"), fmt::format("the number {}", settings.val_size),
                    "a share below 1 or a whole number of records");
  }
  // Offsets of documents are 32-bit numbers on a card, and no machine is near it.
  constexpr int64_t kMostTokens = int64_t{1} << 31;
  if (settings.per_device_train_batch_size > kMostTokens / settings.max_length) {
    throw bad_input(
        where("per_device_train_batch_size"),
        fmt::format("{} rows of max_length {}", settings.per_device_train_batch_size, settings.max_length),
        "2^31 tokens at most in a micro-batch");
  }
  if (settings.master_weights != MasterWeights::kFp32 && settings.precision != Precision::kBf16) {
    const bool fp32 = settings.precision == Precision::kFp32;
    throw bad_input(
        where("master_weights"),
        fmt::format("\"{}\" with precision \"{}\"",
                    settings.master_weights == MasterWeights::kSplit ? "split" : "none",
                    fp32 ? "fp32" : "fp16"),
        fp32 ? "\"fp32\": weights of fp32 are their own master" : "\"fp32\", or precision \"bf16\"");
  }
  if (settings.fp8 && settings.precision != Precision::kBf16) {
    throw bad_input(
        where("fp8"),
        fmt::format("true with precision \"{}\"", settings.precision == Precision::kFp32 ? "fp32" : "fp16"),
        "precision \"bf16\", or false");
  }
  const bool evaluates = settings.eval_file || settings.val_size > 0;
  if (!evaluates && (settings.patience || settings.keep_best)) {
    throw bad_input(where(settings.patience ? "patience" : "keep_best"), "no records to evaluate on",
                    "eval_file or val_size > 0");
  }
}

Settings settle(GivenByKey given, std::string_view source, const std::vector<std::string>& overrides,
                bool complete = true) {
  for (const std::string& text : overrides) apply_override(given, text);
  Settings settings;
  settings.source = source;
  for (const auto& [key, value] : given)
    if (value.from_override) settings.overrides.push_back(key);
  for (const Field& field : settings_table()) {
    const auto found = given.find(field.info.key);
    if (found != given.end()) field.set(settings, found->second.value, found->second.where);
  }
  resolve_alternatives(settings, given, source);
  if (complete) check_required(settings, given, source);
  check_together(settings, given, source);
  return settings;
}

}  // namespace

std::string name_source(const Settings& settings, std::string_view message) {
  if (settings.source.empty()) return std::string(message);
  const auto begins_with = [&](std::string_view key) {
    return message.starts_with(key) && message.size() > key.size() &&
           std::string_view(": \"").find(message[key.size()]) != std::string_view::npos;
  };
  for (const Field& field : settings_table()) {
    const std::string& key = field.info.key;
    if (!begins_with(key)) continue;
    const bool overridden = std::ranges::count(settings.overrides, key) > 0;
    return fmt::format("{}: {}", overridden ? kCommandLine : settings.source, message);
  }
  return std::string(message);
}

Settings default_settings(const std::vector<std::string>& overrides) {
  return settle({}, "defaults", overrides, /*complete=*/false);
}

Settings parse_settings(std::string_view text, std::string_view source,
                        const std::vector<std::string>& overrides) {
  return settle(read_file_values(parse_json(text, source, {.allow_comments = true}), source), source,
                overrides);
}

Settings read_settings(const std::filesystem::path& config, const std::vector<std::string>& overrides) {
  const Json json = read_json_file(config, {.allow_comments = true});
  return settle(read_file_values(json, config.string()), config.string(), overrides);
}

int64_t warmup_step_count(const Settings& settings, int64_t total_steps) {
  const bool is_ratio = !settings.warmup_steps || *settings.warmup_steps < 1;
  if (is_ratio) {
    const double ratio = settings.warmup_steps.value_or(settings.warmup_ratio.value_or(0.0));
    // Products such as 0.07 * 100 come out a hair above the whole number that is meant.
    const double steps = std::ceil(ratio * static_cast<double>(total_steps) - 1e-9);
    return std::clamp<int64_t>(static_cast<int64_t>(steps), 0, std::max<int64_t>(total_steps - 1, 0));
  }
  if (*settings.warmup_steps != std::floor(*settings.warmup_steps)) {
    throw bad_input("warmup_steps", fmt::format("{}", *settings.warmup_steps),
                    "a whole number of steps, or a share below 1");
  }
  const auto steps = static_cast<int64_t>(*settings.warmup_steps);
  if (steps >= total_steps) {
    throw bad_input("warmup_steps",
                    fmt::format("{} steps of warm-up in a run of {} steps", steps, total_steps),
                    "a warm-up shorter than the run (packing makes runs short: see --dry-run)");
  }
  return steps;
}

int64_t shard_group_size(const Settings& settings, int64_t world_size) {
  const int64_t size = settings.shard_group_size.value_or(world_size);
  if (size <= world_size && world_size % size == 0) return size;
  throw bad_input("shard_group_size", std::to_string(size),
                  fmt::format("a divisor of the number of processes, {}", world_size));
}

}  // namespace satune
