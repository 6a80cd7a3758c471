// satune data: what a training file holds, what training makes of it, and every problem with its record.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <thread>

#include "data/data_report.h"
#include "data/files/counted.h"
#include "data/files/error.h"
#include "data/record_checks.h"
#include "data/utf8.h"
#include "evaluation/model_loader.h"
#include "model/files/hf_directory.h"
#include "trainer/commands/column_options.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/number_checks.h"
#include "trainer/commands/standard_output.h"

namespace satune {
namespace {

struct DataCommand {
  std::string file, overlength = "drop", records;
  std::vector<std::string> models, templates, columns;
  int64_t max_length = 4096, examples = 1, problems = 10;
  uint64_t seed = 42;
  bool json = false, strict = false;
};

struct RecordRange {
  size_t first = 1, last = SIZE_MAX;
};

/// "17" or "17-20".
RecordRange parse_range(const std::string& text) {
  RecordRange range;
  if (text.empty()) return range;
  const char* end = text.data() + text.size();
  std::from_chars_result read = std::from_chars(text.data(), end, range.first);
  range.last = range.first;
  if (read.ec == std::errc() && read.ptr != end && *read.ptr == '-')
    read = std::from_chars(read.ptr + 1, end, range.last);
  if (read.ec != std::errc() || read.ptr != end || range.first < 1 || range.last < range.first)
    throw bad_input("--records", quote_json(text), "a record number, or FIRST-LAST from 1");
  return range;
}

/// A tokenizer with the templates that it is asked to serve.
struct Encoding {
  std::string model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<PromptTemplate> templates;
};

std::vector<Encoding> load_encodings(const DataCommand& options) {
  std::vector<Encoding> encodings;
  for (const std::string& model : options.models) {
    // A folder with a tokenizer alone will do.
    std::error_code error;
    const std::filesystem::path directory = std::filesystem::is_directory(model, error)
                                                ? std::filesystem::path(model)
                                                : resolve_model_directory(model);
    Encoding encoding{model, load_tokenizer(directory), {}};
    for (const std::string& name : options.templates)
      encoding.templates.push_back(PromptTemplate::load(name));
    if (options.templates.empty()) {
      auto recorded = recorded_template(directory);
      encoding.templates.push_back(recorded ? std::move(*recorded) : PromptTemplate::load("alpaca"));
    }
    encodings.push_back(std::move(encoding));
  }
  return encodings;
}

/// What templates put before a response as text ("### Response:").
std::vector<std::string> response_headers(const std::vector<Encoding>& encodings) {
  std::vector<std::string> headers;
  const auto add = [&](const PromptTemplate& prompt_template) {
    const TemplateStrings& strings = prompt_template.strings();
    const std::string header(trim_white_space(strings.response_header));
    // Look-alikes of special tokens are a kind of their own.
    const bool special = !find_special_token_text(header).empty();
    if (!header.empty() && !special && std::find(headers.begin(), headers.end(), header) == headers.end())
      headers.push_back(header);
  };
  for (const Encoding& encoding : encodings)
    for (const PromptTemplate& prompt_template : encoding.templates) add(prompt_template);
  if (encodings.empty()) add(PromptTemplate::load("alpaca"));
  return headers;
}

class DataDoctor {
 public:
  DataDoctor(const DataCommand& options, std::vector<Encoding> encodings)
      : options_(options), range_(parse_range(options.records)), encodings_(std::move(encodings)) {
    report_.file = options.file;
    report_.policy.max_length = options.max_length;
    report_.policy.overlength = parse_overlength(options.overlength);
    report_.seed = options.seed;
    report_.survey = survey_records(options.file, parse_columns("--columns", options.columns),
                                    static_cast<size_t>(options.problems));
    if (plain() && !options.templates.empty())
      throw bad_input("--template " + options.templates.front(),
                      options.file + ", plain text, which has no template", "Alpaca JSON or JSONL");
    const int64_t records = report_.survey.records;
    if (range_.first > static_cast<size_t>(records))
      throw bad_input("--records " + options.records,
                      fmt::format("{} with {}", options.file, counted(records, "record")),
                      "a number that the file has");
  }

  DataReport run() {
    report_.characters = character_statistics(report_.survey);
    check_records(report_.survey, plain() ? std::vector<std::string>() : response_headers(encodings_));
    size_t variants = 0;
    for (const Encoding& encoding : encodings_) variants += plain() ? 1 : encoding.templates.size();
    for (const Encoding& encoding : encodings_) {
      if (plain()) add_variant(encoding, nullptr, variants > 1);
      if (plain()) continue;
      for (const PromptTemplate& prompt_template : encoding.templates)
        add_variant(encoding, &prompt_template, variants > 1);
    }
    return std::move(report_);
  }

 private:
  bool plain() const { return report_.survey.format == DataFormat::kText; }

  void add_variant(const Encoding& encoding, const PromptTemplate* prompt_template, bool several) {
    const std::string name = prompt_template ? prompt_template->name() : "";
    DataVariant variant;
    try {
      if (prompt_template) prompt_template->check(*encoding.tokenizer);
      const std::string label =
          several ? fmt::format("{}{}{}", name, name.empty() ? "" : ", ", encoding.model) : "";
      const int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
      variant = measure_variant(report_.survey, *encoding.tokenizer, prompt_template, report_.policy,
                                options_.seed, threads, label);
    } catch (const BadInput& error) {
      if (!several) throw;
      variant.unusable = error.what();  // one of several: the others are told all the same
    }
    variant.model = encoding.model;
    variant.template_name = name;
    if (variant.unusable.empty()) add_examples(encoding, prompt_template);
    report_.variants.push_back(std::move(variant));
  }

  void add_examples(const Encoding& encoding, const PromptTemplate* prompt_template) {
    const RecordSurvey& survey = report_.survey;
    int64_t shown = 0;
    for (size_t i = 0; i < survey.lines.size() && shown < options_.examples; ++i) {
      const size_t number = plain() ? survey.documents[i].number : survey.instructions[i].number;
      if (number < range_.first || number > range_.last) continue;
      ExampleLines example =
          satune::example_lines(survey, i, *encoding.tokenizer, prompt_template, report_.policy);
      example.model = encoding.model;
      example.template_name = prompt_template ? prompt_template->name() : "";
      report_.examples.push_back(std::move(example));
      ++shown;
    }
    if (shown > 0 || options_.examples == 0 || options_.records.empty()) return;
    ExampleLines none;
    none.model = encoding.model;
    none.template_name = prompt_template ? prompt_template->name() : "";
    none.record = static_cast<int64_t>(range_.first);
    none.lines = {fmt::format("not trained: nothing of --records {} can be read", options_.records)};
    report_.examples.push_back(std::move(none));
  }

  const DataCommand& options_;
  RecordRange range_;
  std::vector<Encoding> encodings_;
  DataReport report_;
};

int run_data(const DataCommand& options) {
  const DataReport report = DataDoctor(options, load_encodings(options)).run();
  fmt::print("{}", options.json ? write_json(data_report_json(report)) : data_report_text(report));
  finish_standard_output();
  const bool unusable = std::any_of(report.variants.begin(), report.variants.end(),
                                    [](const DataVariant& variant) { return !variant.unusable.empty(); });
  return options.strict && (unusable || report.survey.problems.total() > 0) ? kExitFailure : kExitOk;
}

}  // namespace

void add_data_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<DataCommand>();
  CLI::App* command =
      app.add_subcommand("data", "Examine a training file: counts, lengths, packing, every problem");
  command
      ->add_option("file", options->file, "Alpaca JSON or JSONL, or plain text: .txt, or JSONL with `text`")
      ->required();
  CLI::Option* model =
      command
          ->add_option(
              "--model", options->models,
              "Whose tokenizer counts tokens: Hugging Face directory, or a hub id in the local cache; "
              "several to compare (without one: characters only)")
          ->allow_extra_args(false);
  command
      ->add_option(
          "--template", options->templates,
          "alpaca, alpaca_stanford, llama3 or a template file; several to compare (default: what the "
          "model was trained with, else alpaca)")
      ->allow_extra_args(false)
      ->needs(model);
  command->add_option("--max-length", options->max_length, "Tokens of a row (default 4096)")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->needs(model);
  command
      ->add_option("--overlength", options->overlength,
                   "drop | truncate | error: as training is told (default drop)")
      ->needs(model);
  command
      ->add_option("--columns", options->columns,
                   "A key of the records under another name, as output=answer; once for each")
      ->allow_extra_args(false)
      ->type_name("NAME=KEY");
  command->add_option("--seed", options->seed, "Of the order in which samples are packed (default 42)")
      ->check(seed_number())
      ->needs(model);
  command
      ->add_option("--examples", options->examples,
                   "Show this many records as trained, token by token (default 1)")
      ->check(not_negative())
      ->needs(model);
  command->add_option("--records", options->records, "Take the examples from these: N or FIRST-LAST, from 1")
      ->needs(model);
  command
      ->add_option("--problems", options->problems,
                   "List at most this many of each kind; the rest is counted (default 10)")
      ->check(not_negative());
  command->add_flag("--strict", options->strict,
                    "Exit with 1 when there is any problem, or a template that the tokenizer cannot serve");
  command->add_flag("--json", options->json, "Print the report as JSON");
  command->footer(
      "Counts are those of a training run without an eval split (val_size 0); packed rows are those of its "
      "first\n"
      "epoch. Padding is what rows of --max-length tokens would hold beside tokens; satune computes none of "
      "it.\n"
      "Exit code 0: the file could be read, whatever was found; 1: a problem, with --strict; 2: no record at "
      "all.\n"
      "Examples:\n"
      "  satune data alpaca.json\n"
      "  satune data alpaca.json --model meta-llama/Meta-Llama-3-8B --template alpaca --template llama3\n"
      "  satune data alpaca.json --model MODEL --max-length 1024 --overlength truncate --records 17 "
      "--strict");
  command->callback([options, &exit_code] { exit_code = run_data(*options); });
}

}  // namespace satune
