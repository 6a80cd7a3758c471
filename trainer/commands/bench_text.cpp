#include <fmt/format.h>

#include "data/files/counted.h"
#include "trainer/commands/bench_report.h"
#include "trainer/progress.h"

namespace satune {
namespace {

std::string in_bytes(int64_t value) {
  return format_bytes(static_cast<double>(value));
}

std::string model_lines(const BenchRequest& request, const BenchPlace& place,
                        const std::vector<BenchVariant>& variants) {
  const ModelPlan& model = variants.front().model;
  std::string text = fmt::format("model    {}: {}{}, {} parameters, random weights\n", request.model,
                                 counted(model.config.num_hidden_layers, "layer"),
                                 request.layers ? " (cut by --layers: not the whole model)" : "",
                                 format_count(static_cast<double>(model.table.parameter_count())));
  const std::string on = place.device == "cpu" ? "cpu, " + counted(place.threads, "thread") : place.device;
  return text + fmt::format("place    {}{}, {}\n", on,
                            place.world_size > 1 ? fmt::format(" x {} ranks", place.world_size) : "",
                            request.precision);
}

/// "FLOP a token = 6 x 7.50G weights of products + 6 x 4096 x 4096 x 32 of attention = 51.5G".
std::string formula_line(const BenchRequest& request, const BenchVariant& variant,
                         const TrainingResult& result) {
  const ModelConfig& config = variant.model.config;
  const double shared = config.sharing.num_shared(),
               attention = static_cast<double>(request.length.document_length) *
                           static_cast<double>(config.query_size()) *
                           (6 * (static_cast<double>(config.num_hidden_layers) - shared) + 3 * shared);
  return fmt::format(
      "  FLOP a token  6 x {} weights in products + {} x {} x (6 x {} + 3 x {} layers) of causal attention = "
      "{}\n"
      "  MFU           FLOP a token x tokens/s / {} FLOP/s ({}) = {:.1f} %\n",
      format_count((result.flops_per_token - attention) / 6), request.length.document_length,
      config.query_size(), config.num_hidden_layers - config.sharing.num_shared(),
      config.sharing.num_shared(), format_count(result.flops_per_token), format_count(result.peak_flops),
      request.peak_tflops ? "--peak-tflops" : "measured: a large matmul", 100 * result.mfu);
}

std::string memory_line(const TrainingTimes& times) {
  return fmt::format("  memory        peak {}, {} of it before the model was there; planned {}\n",
                     in_bytes(times.memory_peak), in_bytes(times.memory_before),
                     in_bytes(times.plan.total()));
}

std::string training_lines(const BenchRequest& request, const BenchVariant& variant,
                           const TrainingResult& result) {
  const TrainingTimes& times = result.times;
  std::string text = fmt::format(
      "\n{}\n"
      "  step          {:.4g} s median of {} (p10 {:.4g}, p90 {:.4g}), {} tokens/s\n",
      variant.name(), result.median, times.step_seconds.size(), result.p10, result.p90,
      format_count(result.tokens_per_second));
  text += formula_line(request, variant, result) + memory_line(times);
  text += fmt::format("  attention     {}\n", times.attention);
  const Floors& floors = times.floors;
  const std::string in_8_bits =
      floors.gemm8_flops > 0 ? fmt::format(" (in 8 bits {})", format_count(floors.gemm8_flops)) : "";
  text += fmt::format("  floors        GEMM {} FLOP/s{}, copy {} B/s, measured in this run\n",
                      format_count(floors.gemm_flops), in_8_bits, format_count(floors.copy_bytes));
  if (times.skipped_updates > 0)
    text += fmt::format("  WARNING       {} without an update: loss or gradients were not finite\n",
                        counted(times.skipped_updates, "step"));
  return text + rows_text(result.rows);
}

}  // namespace

std::string bench_text(const BenchRequest& request, const BenchPlace& place,
                       const std::vector<BenchVariant>& variants,
                       const std::vector<TrainingResult>& results) {
  std::string text = model_lines(request, place, variants);
  text += fmt::format("step     {} x {} tokens{}, {} accumulated, gradient_checkpointing {}, ZeRO stage {}\n",
                      request.micro_batch, request.sequence_length,
                      request.length.document_length < request.sequence_length
                          ? fmt::format(" in documents of {}", request.length.document_length)
                          : "",
                      request.accumulation, request.checkpointing, results.front().times.zero_stage);
  for (size_t i = 0; i < variants.size(); ++i) text += training_lines(request, variants[i], results[i]);
  if (results.size() == 2)
    text += fmt::format("\n{} at {:.3f} times the speed of {} ({} turns each)\n", variants[1].name(),
                        results[1].tokens_per_second / results[0].tokens_per_second, variants[0].name(),
                        request.turns);
  return text;
}

std::string bench_text(const BenchRequest& request, const BenchPlace& place,
                       const std::vector<BenchVariant>& variants, const DecodeSeries& series) {
  std::string text = model_lines(request, place, variants);
  text += fmt::format("decoding prompts of {} tokens, {} new ones each; ended by {}\n\n{:>6}",
                      request.decoding.prompt, request.decoding.tokens, series.ended_by, "batch");
  for (const BenchVariant& variant : variants)
    text += fmt::format("  {:>18}{:>12}{:>12}", variant.name(), "ms a step", "KV cache");
  text += variants.size() == 2 ? fmt::format("{:>10}{:>12}\n", "speed", "KV saved") : "\n";
  for (size_t row = 0; row < series.by_model.front().size(); ++row) {
    text += fmt::format("{:>6}", series.by_model.front()[row].batch);
    for (const std::vector<DecodeTimes>& times : series.by_model)
      text += fmt::format("  {:>10} tokens/s{:>11.4g}{:>12}", format_count(times[row].tokens_per_second()),
                          1000 * times[row].step_seconds, in_bytes(times[row].cache_bytes));
    if (variants.size() == 2) {
      const DecodeTimes &dense = series.by_model[0][row], &shared = series.by_model[1][row];
      text += fmt::format("{:>9.3f}x{:>12}", shared.tokens_per_second() / dense.tokens_per_second(),
                          in_bytes(dense.cache_bytes - shared.cache_bytes));
    }
    text += "\n";
  }
  return text;
}

}  // namespace satune
