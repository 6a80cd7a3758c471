#include "trainer/trained_text.h"

#include <array>
#include <system_error>

#include "data/files/error.h"
#include "data/template_file.h"

namespace satune {
namespace {

constexpr const char* kFormat = "data_format";
constexpr const char* kTemplate = "template";
constexpr std::array<std::pair<DataFormat, std::string_view>, 2> kFormats = {
    {{DataFormat::kAlpaca, "alpaca"}, {DataFormat::kText, "text"}}};

DataFormat parse_format(const Json& value, const std::string& where) {
  for (const auto& [format, name] : kFormats)
    if (value == std::string(name)) return format;
  throw bad_input(where, describe_json(&value), "\"alpaca\" or \"text\"");
}

DataFormat ask_training_file(const Settings& settings) {
  std::error_code error;
  if (!std::filesystem::exists(settings.train_file, error)) return DataFormat::kAlpaca;
  return detect_data_format(settings.train_file, settings.columns);
}

PromptTemplate load_by_name(const std::string& name, const std::string& source) {
  try {
    return PromptTemplate::load(name);
  } catch (const BadInput& error) {
    throw BadInput(fmt::format("{}: settings: {}", source, error.what()));
  }
}

}  // namespace

TrainedText trained_text(RunPlan& plan) {
  return {plan.train().dataset().cache().format(), plan.prompt_template()};
}

void add_trained_text(Json& state, const TrainedText& text) {
  for (const auto& [format, name] : kFormats)
    if (format == text.format) state[kFormat] = name;
  state[kTemplate] = template_json(text.prompt_template);
}

TrainedText parse_trained_text(const Json& state, const Settings& settings, const std::string& source) {
  const auto where = [&](const char* key) { return fmt::format("{}: {}", source, key); };
  return {
      state.contains(kFormat) ? parse_format(state.at(kFormat), where(kFormat)) : ask_training_file(settings),
      state.contains(kTemplate) ? parse_template(state.at(kTemplate), where(kTemplate))
                                : load_by_name(settings.prompt_template, source)};
}

TrainedText read_trained_text(const SnapshotReader& snapshot) {
  const std::string source = (snapshot.folder() / kStateFile).string();
  return parse_trained_text(snapshot.state(),
                            parse_settings(snapshot.settings().dump(), source + ": settings"), source);
}

}  // namespace satune
