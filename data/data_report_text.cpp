#include <fmt/format.h>

#include <algorithm>

#include "data/data_report.h"
#include "data/files/counted.h"

namespace satune {
namespace {

constexpr int kBarWidth = 40;

std::string line(std::string_view name, const std::string& text) {
  return fmt::format("{:<12}{}\n", name, text);
}

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100 * share);
}

std::string figures(const LengthStatistics& s) {
  return fmt::format("mean {:.1f}, median {}, 90 % up to {}, 99 % up to {}, longest {}", s.mean(), s.median,
                     s.p90, s.p99, s.longest);
}

std::string bars(const LengthStatistics& statistics, int64_t limit = 0) {
  std::string text;
  for (const std::string& bar : histogram_lines(statistics, kBarWidth, limit)) text += "  " + bar + "\n";
  return text;
}

std::string head(const DataReport& report) {
  const RecordSurvey& survey = report.survey;
  const bool plain = survey.format == DataFormat::kText;
  std::string text =
      line("file", fmt::format("{}: {}, {} bytes", report.file, survey.container, survey.bytes));
  std::string records = counted(survey.records, plain ? "document" : "record") +
                        (plain ? " of plain text" : " of instructions");
  if (survey.readable() < survey.records) records += fmt::format(", {} of them readable", survey.readable());
  if (!plain) records += fmt::format("; {} with an input", records_with_input(survey));
  text += line("records", records);
  std::string ignored;
  for (const auto& [key, count] : survey.ignored_keys)
    ignored += fmt::format("{}{} ({})", ignored.empty() ? "" : ", ", quote_json(key), count);
  if (!ignored.empty()) text += line("not read", "keys " + ignored);
  if (!survey.unread.empty()) text += line("not read", survey.unread);
  text += line("characters", figures(report.characters));
  if (report.variants.empty()) {
    text += bars(report.characters);
    text += line("tokens", "not counted: they need a tokenizer (--model)");
  }
  return text;
}

std::string dropped_text(const DataVariant& variant, const DatasetPolicy& policy) {
  const DatasetSummary& s = variant.summary;
  const double records = static_cast<double>(std::max<int64_t>(s.records, 1));
  const auto share = [&](int64_t count) { return percent(static_cast<double>(count) / records); };
  std::string text = fmt::format("{} with nothing to learn ({}), {} too long ({})", s.dropped_empty,
                                 share(s.dropped_empty), s.dropped_overlength, share(s.dropped_overlength));
  if (variant.dropped_no_target > 0)
    text += fmt::format(", {} of these for want of a target after the cut", variant.dropped_no_target);
  if (s.truncated > 0) text += fmt::format("; {} truncated ({})", s.truncated, share(s.truncated));
  return text + fmt::format("; max_length {}, overlength \"{}\"", policy.max_length,
                            overlength_name(policy.overlength));
}

std::string variant_text(const DataVariant& variant, const DatasetPolicy& policy) {
  std::string text = fmt::format(
      "\n{}, {}\n", variant.template_name.empty() ? "plain text" : "template " + variant.template_name,
      variant.model);
  if (!variant.unusable.empty()) return text + line("  unusable", variant.unusable);
  const DatasetSummary& s = variant.summary;
  text +=
      line("samples", fmt::format("{} of {}, {} ({}), longest {}", s.kept, counted(s.records, "record"),
                                  counted(s.tokens, "token"), counted(s.target_tokens, "target"), s.longest));
  text += line("dropped", dropped_text(variant, policy));
  text += line("tokens", figures(variant.lengths) + " (of all records)") +
          bars(variant.lengths, policy.max_length);
  if (!variant.template_name.empty()) text += line("targets", figures(variant.target_lengths));
  if (s.kept == 0) return text;
  const double packed = variant.padding(variant.packed_rows, policy.max_length),
               plain = variant.padding(variant.plain_rows, policy.max_length);
  text +=
      line("packed", fmt::format("{} an epoch of {} tokens, {} padding", counted(variant.packed_rows, "row"),
                                 policy.max_length, percent(packed)));
  text += line("unpacked", fmt::format("{}, {} padding: packing saves {} of the rows",
                                       counted(variant.plain_rows, "row"), percent(plain),
                                       percent(1 - static_cast<double>(variant.packed_rows) /
                                                       static_cast<double>(variant.plain_rows))));
  return text;
}

std::string problems_text(const DataProblems& problems) {
  if (problems.total() == 0) return "\nno problems\n";
  std::string text = fmt::format("\n{}\n", counted(problems.total(), "problem"));
  for (const ProblemKindInfo& info : problem_kinds()) {
    const int64_t count = problems.count(info.kind);
    if (count == 0) continue;
    text += fmt::format("{:>8} {}: {} [{}]\n", count, info.key, info.title, problem_effect_name(info.effect));
    const std::vector<Problem>& kept = problems.kept(info.kind);
    for (const Problem& problem : kept) {
      std::string place = problem.record == 0 ? "file" : fmt::format("record {}", problem.record);
      if (problem.line > 0) place += fmt::format(" (line {})", problem.line);
      text += fmt::format("           {}{}{}\n", place, problem.text.empty() ? "" : ": ", problem.text);
    }
    const int64_t rest = count - static_cast<int64_t>(kept.size());
    if (rest > 0 && !kept.empty()) text += fmt::format("           and {} more\n", rest);
  }
  return text;
}

}  // namespace

std::string data_report_text(const DataReport& report) {
  std::string text = head(report);
  for (const DataVariant& variant : report.variants) text += variant_text(variant, report.policy);
  for (const ExampleLines& example : report.examples) {
    text += fmt::format("\nexample: record {} as trained ({}{})\n", example.record,
                        example.template_name.empty() ? "" : "template " + example.template_name + ", ",
                        example.model);
    for (const std::string& row : example.lines) text += row + "\n";
  }
  return text + problems_text(report.survey.problems);
}

}  // namespace satune
