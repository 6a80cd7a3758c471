#include <algorithm>

#include "data/data_report.h"

namespace satune {
namespace {

Json statistics_json(const LengthStatistics& s) {
  return {{"count", s.count},
          {"sum", s.sum},
          {"mean", s.mean()},
          {"shortest", s.shortest},
          {"median", s.median},
          {"p90", s.p90},
          {"p99", s.p99},
          {"longest", s.longest},
          {"histogram", {{"edges", s.edges}, {"counts", s.counts}}}};
}

Json variant_json(const DataVariant& variant, const DatasetPolicy& policy) {
  Json json = {{"model", variant.model},
               {"template", variant.template_name.empty() ? Json(nullptr) : Json(variant.template_name)}};
  if (!variant.unusable.empty()) {
    json["unusable"] = variant.unusable;
    return json;
  }
  const DatasetSummary& s = variant.summary;
  const double records = static_cast<double>(std::max<int64_t>(s.records, 1));
  json["records"] = s.records;
  json["samples"] = s.kept;
  json["tokens"] = s.tokens;
  json["target_tokens"] = s.target_tokens;
  json["longest_sample"] = s.longest;
  json["dropped"] = {{"nothing_to_learn", s.dropped_empty},
                     {"overlength", s.dropped_overlength},
                     {"no_target_left", variant.dropped_no_target},
                     {"overlength_share", static_cast<double>(s.dropped_overlength) / records}};
  json["truncated"] = s.truncated;
  json["lengths"] = statistics_json(variant.lengths);
  json["target_lengths"] = statistics_json(variant.target_lengths);
  json["rows"] = {{"packed", variant.packed_rows}, {"unpacked", variant.plain_rows}};
  json["padding"] = {{"packed", variant.padding(variant.packed_rows, policy.max_length)},
                     {"unpacked", variant.padding(variant.plain_rows, policy.max_length)}};
  return json;
}

Json problems_json(const DataProblems& problems) {
  Json json = Json::object();
  for (const ProblemKindInfo& info : problem_kinds()) {
    if (problems.count(info.kind) == 0) continue;
    Json listed = Json::array();
    for (const Problem& problem : problems.kept(info.kind))
      listed.push_back({{"record", problem.record}, {"line", problem.line}, {"text", problem.text}});
    json[std::string(info.key)] = {{"count", problems.count(info.kind)},
                                   {"effect", problem_effect_name(info.effect)},
                                   {"listed", listed}};
  }
  return json;
}

}  // namespace

Json data_report_json(const DataReport& report) {
  const RecordSurvey& survey = report.survey;
  Json json = {{"file", report.file},
               {"container", survey.container},
               {"format", survey.format == DataFormat::kText ? "text" : "alpaca"},
               {"bytes", survey.bytes},
               {"records", survey.records},
               {"readable", survey.readable()},
               {"with_input", records_with_input(survey)},
               {"ignored_keys", survey.ignored_keys},
               {"unread", survey.unread.empty() ? Json(nullptr) : Json(survey.unread)},
               {"characters", statistics_json(report.characters)},
               {"max_length", report.policy.max_length},
               {"overlength", overlength_name(report.policy.overlength)},
               {"seed", report.seed},
               {"variants", Json::array()},
               {"problems", problems_json(survey.problems)},
               {"problem_count", survey.problems.total()},
               {"examples", Json::array()}};
  for (const DataVariant& variant : report.variants)
    json["variants"].push_back(variant_json(variant, report.policy));
  for (const ExampleLines& example : report.examples)
    json["examples"].push_back({{"record", example.record},
                                {"model", example.model},
                                {"template", example.template_name},
                                {"lines", example.lines}});
  return json;
}

}  // namespace satune
