#include "trainer/run_state.h"

#include <cmath>
#include <limits>

#include "model/files/json_fields.h"

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
void for_each_optional_number(Metrics& metrics, const F& f) {
  f("mfu", metrics.mfu);
  f("sent_reduced_bytes", metrics.sent_reduced_bytes);
  f("sent_gathered_bytes", metrics.sent_gathered_bytes);
  f("sent_other_bytes", metrics.sent_other_bytes);
  f("device_power_w", metrics.device_power_w);
  f("device_temperature_c", metrics.device_temperature_c);
  f("device_utilisation", metrics.device_utilisation);
}

Json row_json(const StepMetrics& metrics) {
  Json json = {{"step", metrics.step},
               {"num_tokens", metrics.num_tokens},
               {"peak_memory_bytes", metrics.peak_memory_bytes}};
  for_each_number(metrics, [&](const char* key, double value) { json[key] = value; });
  for_each_optional_number(metrics, [&](const char* key, const std::optional<double>& value) {
    if (value) json[key] = *value;
  });
  return json;
}

int64_t counter(const JsonFields& fields, std::string_view key) {
  return fields.integer(key, 0, std::numeric_limits<int64_t>::max());
}

StepMetrics parse_row(const JsonFields& fields) {
  StepMetrics metrics;
  metrics.step = counter(fields, "step");
  metrics.num_tokens = counter(fields, "num_tokens");
  metrics.peak_memory_bytes = counter(fields, "peak_memory_bytes");
  // null stands for what JSON has no number for: a loss that is not finite.
  for_each_number(metrics, [&](const char* key, double& value) { value = fields.number(key, std::nan("")); });
  for_each_optional_number(metrics, [&](const char* key, std::optional<double>& value) {
    if (fields.find(key) != nullptr) value = fields.number(key);
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
  const JsonFields fields(json, std::string(source));
  RunState state;
  for_each_counter(state, [&](const char* key, int64_t& value) { value = counter(fields, key); });
  state.loss_scale.value = fields.positive_number("loss_scale");
  state.stopped_early = fields.boolean("stopped_early");
  if (fields.find("best_eval_loss") != nullptr) state.best_eval_loss = fields.number("best_eval_loss");
  if (fields.find("unlogged") != nullptr) state.unlogged = parse_row(fields.object("unlogged"));
  return state;
}

}  // namespace satune
