// satune analyze: which layers attend alike, and what sharing their attention weights would cost.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <optional>

#include "data/files/atomic_file.h"
#include "data/files/counted.h"
#include "data/files/error.h"
#include "evaluation/analyze_model.h"
#include "trainer/analysis_models.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/model_options.h"
#include "trainer/commands/standard_output.h"
#include "trainer/device.h"
#include "trainer/progress.h"
#include "trainer/signals.h"

namespace satune {
namespace {

struct AnalyzeOptions {
  std::vector<std::string> models;
  std::string data, output, device = "auto", precision = "auto", budget = "5%";
  std::optional<std::string> template_name;
  int64_t max_length = 1024, max_records = 32;
  bool max_length_given = false, suggestion_given = false, json = false;
  AnalysisOptions analysis;
};

LossBudget parse_budget(const std::string& text) {
  LossBudget budget;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, budget.value);
  budget.relative = stop + 1 == end && *stop == '%';
  if (error != std::errc() || !(budget.value >= 0) || !std::isfinite(budget.value) ||
      !(stop == end || budget.relative))
    throw bad_input("--loss-budget", fmt::format("\"{}\"", text),
                    "nats per token as in 0.05, or a share as in 3%");
  if (budget.relative) budget.value /= 100;
  return budget;
}

/// The same for all models, so that they see the same documents.
int64_t bounded_length(const AnalyzeOptions& options,
                       const std::vector<std::unique_ptr<AnalysisModel>>& models) {
  int64_t length = options.max_length;
  for (const auto& model : models) {
    const int64_t positions = model->config().max_position_embeddings;
    if (options.max_length_given && options.max_length > positions)
      throw bad_input("--max-length", fmt::format("{} tokens", options.max_length),
                      fmt::format("at most {}, the max_position_embeddings of {}", positions, model->name()));
    length = std::min(length, positions);
  }
  return length;
}

struct LoadedText {
  std::optional<PromptTemplate> prompt_template;
  AnalysisDocuments documents;
};

LoadedText read_documents(const AnalyzeOptions& options, const AnalysisModel& model) {
  LoadedText text;
  if (detect_data_format(options.data) == DataFormat::kAlpaca) {
    text.prompt_template = model.prompt_template(options.template_name);
  } else if (options.template_name) {
    throw bad_input("--template " + *options.template_name,
                    options.data + ", plain text, which has no template", "Alpaca JSON or JSONL");
  }
  text.documents = read_analysis_documents(options.data, model.tokenizer(),
                                           text.prompt_template ? &*text.prompt_template : nullptr,
                                           options.max_length, options.max_records);
  return text;
}

/// Models side by side are only worth something on the same tokens. Throws BadInput naming what differs.
void check_same_documents(const std::vector<std::unique_ptr<AnalysisModel>>& models,
                          const std::vector<LoadedText>& texts) {
  const auto same = [](const EncodedSample& a, const EncodedSample& b) {
    return a.tokens == b.tokens && a.prompt_length == b.prompt_length;
  };
  for (size_t i = 1; i < models.size(); ++i) {
    const auto &first = texts[0].documents.samples, &own = texts[i].documents.samples;
    if (std::equal(first.begin(), first.end(), own.begin(), own.end(), same)) continue;
    const auto &one = texts[0].prompt_template, &other = texts[i].prompt_template;
    const bool tokenizer = models[0]->tokenizer().fingerprint() != models[i]->tokenizer().fingerprint();
    const bool prompt_form = one && other && one->fingerprint() != other->fingerprint();
    throw bad_input(
        models[i]->name(),
        tokenizer ? "another tokenizer than that of " + models[0]->name()
        : prompt_form
            ? fmt::format("template {}, not {} as {}", other->name(), one->name(), models[0]->name())
            : "documents of other tokens than those of " + models[0]->name(),
        !tokenizer && prompt_form ? "--template, one for all"
                                  : "models that read the same tokens (analyse the others apart)");
  }
}

/// Says every ten seconds how far the analysis is.
class ProgressLines {
 public:
  void operator()(const std::string& stage, int64_t done, int64_t total) {
    const auto now = Clock::now();
    if (stage != stage_) {
      stage_ = stage;
      // The first step ends here; the time until the next one is the first that is measured.
      start_ = last_line_ = now;
      start_done_ = done;
    }
    if (done == total || now - last_line_ < std::chrono::seconds(10)) return;
    last_line_ = now;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    spdlog::info("{}: {} of {}, {} left", stage, done, total,
                 format_duration(seconds / static_cast<double>(done - start_done_) *
                                 static_cast<double>(total - done)));
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::string stage_;
  Clock::time_point start_, last_line_;
  int64_t start_done_ = 0;
};

void write_report(const std::filesystem::path& folder, const AnalysisReport& report, const Json& json) {
  const std::vector<NamedFigure> figures = analysis_figures(report);
  write_file_atomic(folder / "analysis.json", write_json(json));
  for (const NamedFigure& figure : figures) {
    write_file_atomic(folder / (figure.file + ".svg"), to_svg(figure.drawing));
    write_file_atomic(folder / (figure.file + ".png"), to_png(figure.drawing));
  }
  write_file_atomic(folder / "index.html", analysis_page(report, figures));
}

void print_plans(const ModelAnalysis& model) {
  fmt::print("  dense loss {:.4f}; the best plan for each number of shared layers, without training:\n",
             model.dense_loss.ratio());
  fmt::print("    {:<20} {:>6} {:>12} {:>15} {:>12} {:>14} {:>14}\n", "--sharing", "layers", "loss added",
             "heads assigned", "parameters", "FLOPs / token", "KV B / token");
  for (size_t i = 0; i < model.frontier.size(); ++i) {
    const MeasuredPlan& plan = model.frontier[i];
    fmt::print("  {} {:<20} {:>6} {:>12.4f} {:>15.4f} {:>12} {:>14.4g} {:>14}\n",
               model.suggested == i ? "*" : " ", plan.layers, plan.shared_layers,
               plan.head_for_head.increase.ratio(), plan.assigned.increase.ratio(), -plan.savings.parameters,
               -plan.savings.forward_flops_per_token, -plan.savings.kv_cache_bytes_per_token);
  }
  if (model.suggested) {
    fmt::print("  * suggested\n");
  } else if (model.allowed_increase) {
    fmt::print("  no plan adds at most {:.4g} to the loss\n", *model.allowed_increase);
  }
}

void print_report(const AnalysisReport& report) {
  for (const ModelAnalysis& model : report.models) {
    const at::Tensor similarity = layer_similarity(model.cosines_LHLH);
    fmt::print("{}\n  {}\n", model_title(model), documents_text(model));
    if (similarity.size(0) > 1)
      fmt::print("  similarity of each layer's attention weights with the layer before:\n   ");
    for (int64_t layer = 1; layer < similarity.size(0); ++layer)
      fmt::print(" {}:{:.2f}", layer,
                 similarity.const_data_ptr<double>()[layer * similarity.size(1) + layer - 1]);
    if (similarity.size(0) > 1) fmt::print("\n");
    if (!model.note.empty()) fmt::print("  {}\n", model.note);
    if (!model.frontier.empty()) print_plans(model);
  }
}

int run_analyze(AnalyzeOptions options) {
  require_new_directory(options.output);
  require_folder_for(options.output, "--output");
  std::optional<StopNotice> stop_notice;
  stop_notice.emplace(stop_line("nothing was written, and the same command begins anew"),
                      /*resumable=*/false);
  options.analysis.budget = parse_budget(options.budget);
  if (options.suggestion_given && options.analysis.max_span == 0)
    throw bad_input("--max-span 0", "--layers or --loss-budget beside it",
                    "spans to choose from, or neither");
  const at::Device device = device_of(options.device);
  const auto models = find_analysis_models(options.models, options.precision, device);
  options.max_length = bounded_length(options, models);
  std::vector<LoadedText> texts;
  for (const auto& model : models) {
    check_analysis_options(options.analysis, model->config());
    texts.push_back(read_documents(options, *model));
  }
  check_same_documents(models, texts);
  // That it can be written shows before the work; a signal leaves nothing.
  { const AtomicDirectory trial(options.output); }

  AnalysisReport report;
  report.data = options.data;
  report.settings = {
      {"max_length", options.max_length},
      {"max_records", options.max_records},
      {"template", texts[0].prompt_template ? Json(texts[0].prompt_template->name()) : Json(nullptr)},
      {"precision", options.precision}};
  for (size_t i = 0; i < models.size(); ++i) {
    spdlog::info("{}{}: {}, {}", models[i]->name(),
                 models[i]->step() ? fmt::format(" step {}", *models[i]->step()) : "",
                 counted(texts[i].documents.samples.size(), "document"),
                 counted(texts[i].documents.tokens(), "token"));
    const Llama model = models[i]->load();
    report.models.push_back(
        analyze_model(models[i]->name(), model, texts[i].documents, options.analysis, ProgressLines()));
    report.models.back().step = models[i]->step();
  }
  const Json json = analysis_json(report);
  stop_notice.reset();
  AtomicDirectory folder(options.output);
  write_report(folder.path(), report, json);
  folder.commit();
  if (options.json) {
    fmt::print("{}", write_json(json));
  } else {
    print_report(report);
  }
  finish_standard_output();
  return kExitOk;
}

}  // namespace

void add_analyze_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<AnalyzeOptions>();
  CLI::App* command =
      app.add_subcommand("analyze", "Show which layers attend alike, and what sharing them costs");
  const auto count = CLI::Range(int64_t{1}, int64_t{1} << 24);
  command
      ->add_option(
          "model", options->models,
          "Hugging Face directories, hub ids in the local cache, snapshots, or run folders: every snapshot")
      ->required();
  command
      ->add_option("--data", options->data,
                   "Alpaca JSON or JSONL (the loss is that of the response), or plain text: .txt, or JSONL "
                   "with `text`")
      ->required();
  command->add_option("--output", options->output, "New or empty folder for the report")->required();
  command->add_option(
      "--template", options->template_name,
      "alpaca, alpaca_stanford, llama3 or a template file (default: what the model was trained "
      "with, else alpaca)");
  CLI::Option* length =
      command
          ->add_option(
              "--max-length", options->max_length,
              "Records longer than this many tokens are left out and counted, plain text is cut into pieces "
              "of it (default 1024, or the model's max_position_embeddings where that is less)")
          ->check(CLI::Range(int64_t{2}, int64_t{1} << 24));
  command
      ->add_option("--max-records", options->max_records, "Only the first N records or pieces (default 32)")
      ->check(count);
  command
      ->add_option("--max-span", options->analysis.max_span,
                   "Longest span whose loss is measured (default 8); 0 measures none")
      ->check(CLI::Range(0, 1 << 20));
  CLI::Option* layers =
      command->add_option("--layers", options->analysis.layers, "Suggest the best plan of N shared layers")
          ->check(CLI::Range(1, 1 << 20));
  CLI::Option* budget = command->add_option(
      "--loss-budget", options->budget,
      "Suggest the most layers whose sharing adds at most this to the loss: nats per token, or a share "
      "of the dense loss (default 5%)");
  budget->excludes(layers);
  command->add_option("--precision", options->precision,
                      "fp32 | bf16 (default auto: bf16 for a bf16 checkpoint, else fp32)");
  command->add_option("--device", options->device,
                      "auto | cpu | cuda (default auto: a card where there is one)");
  command->add_flag("--json", options->json, "Print analysis.json instead of a table");
  command->footer(
      "Writes analysis.json, figures as SVG and PNG, and index.html, a page that needs no network:\n"
      "  similarity     cosine of the attention weights of every pair of layers, mean over heads and "
      "documents\n"
      "  heads          which of an anchor's heads serves which head of a layer best, and what that gains\n"
      "  isotropy       weighted cumulative variance of attention weights and hidden states\n"
      "  spans          loss added when a span reuses the layer before it, without training; --sharing for "
      "each\n"
      "                 number of layers with what it saves. Spans far apart are first predicted, then "
      "measured\n"
      "Several models, or snapshots, are analysed on the same tokens: those with another tokenizer are "
      "refused.\n"
      "A model that shares already is analysed as it computes; no further span is measured then. Of a model "
      "of\n"
      "one layer only the isotropy is left.\n"
      "Examples:\n"
      "  satune analyze meta-llama/Meta-Llama-3-8B --data alpaca.json --output analysis\n"
      "  satune analyze MODEL --data wiki.txt --output analysis --layers 4 --max-span 4\n"
      "  satune analyze runs/dense --data alpaca.json --output over-training --max-span 0");
  command->callback([options, length, layers, budget, &exit_code] {
    options->max_length_given = length->count() > 0;
    options->suggestion_given = layers->count() + budget->count() > 0;
    exit_code = run_analyze(*options);
  });
}

}  // namespace satune
