#include "trainer/run_state.h"

#include <cmath>

#include "data/files/error.h"

namespace satune {
namespace {

// The fields that are integers, once for both directions.
template <typename State, typename F>
void for_each_counter(State& state, const F& f) {
  f("step", state.step);
  f("updates", state.updates);
  f("num_tokens", state.num_tokens);
  f("num_samples", state.num_samples);
  f("target_tokens", state.target_tokens);
  f("skipped_steps", state.skipped_steps);
  f("overflow_steps", state.overflow_steps);
  f("good_steps", state.loss_scale.good_steps);
  f("best_step", state.best_step);
  f("evaluations_without_gain", state.evaluations_without_gain);
}

template <typename Metrics, typename F>
void for_each_number(Metrics& metrics, const F& f) {
  f("loss", metrics.loss);
  f("grad_norm", metrics.grad_norm);
  f("learning_rate", metrics.learning_rate);
  f("epoch", metrics.epoch);
  f("mean_token_accuracy", metrics.mean_token_accuracy);
  f("tokens_per_s", metrics.tokens_per_s);
  f("step_seconds", metrics.step_seconds);
}

template <typename Metrics, typename F>
void for_each_device_number(Metrics& metrics, const F& f) {
  f("mfu", metrics.mfu);
  f("device_power_w", metrics.device_power_w);
  f("device_temperature_c", metrics.device_temperature_c);
  f("device_utilisation", metrics.device_utilisation);
}

Json row_json(const StepMetrics& metrics) {
  Json json = {{"step", metrics.step},
               {"num_tokens", metrics.num_tokens},
               {"peak_memory_bytes", metrics.peak_memory_bytes}};
  for_each_number(metrics, [&](const char* key, double value) { json[key] = value; });
  for_each_device_number(metrics, [&](const char* key, const std::optional<double>& value) {
    if (value) json[key] = *value;
  });
  return json;
}

StepMetrics parse_row(const Json& json) {
  StepMetrics metrics;
  metrics.step = json.at("step").get<int64_t>();
  metrics.num_tokens = json.at("num_tokens").get<int64_t>();
  metrics.peak_memory_bytes = json.at("peak_memory_bytes").get<int64_t>();
  for_each_number(metrics, [&](const char* key, double& value) {
    const Json& field = json.at(key);
    value = field.is_null() ? std::nan("") : field.get<double>();
  });
  for_each_device_number(metrics, [&](const char* key, std::optional<double>& value) {
    if (json.contains(key)) value = json.at(key).get<double>();
  });
  return metrics;
}

}  // namespace

Json run_state_json(const RunState& state) {
  Json json = Json::object();
  for_each_counter(state, [&](const char* key, int64_t value) { json[key] = value; });
  json["loss_scale"] = state.loss_scale.value;
  json["stopped_early"] = state.stopped_early;
  json["best_eval_loss"] = state.best_eval_loss ? Json(*state.best_eval_loss) : Json(nullptr);
  json["unlogged"] = state.unlogged ? row_json(*state.unlogged) : Json(nullptr);
  return json;
}

RunState parse_run_state(const Json& json, std::string_view source) {
  try {
    RunState state;
    for_each_counter(state,
                     [&](const char* key, int64_t& value) { value = json.at(key).template get<int64_t>(); });
    state.loss_scale.value = json.at("loss_scale").get<double>();
    state.stopped_early = json.at("stopped_early").get<bool>();
    if (const Json& best = json.at("best_eval_loss"); !best.is_null())
      state.best_eval_loss = best.get<double>();
    if (const Json& row = json.at("unlogged"); !row.is_null()) state.unlogged = parse_row(row);
    return state;
  } catch (const Json::exception& error) {
    throw BadInput(fmt::format("{}: {}", source, error.what()));
  }
}

}  // namespace satune
