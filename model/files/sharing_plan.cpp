#include "model/files/sharing_plan.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "data/files/error.h"

namespace satune {
namespace {

// Layers first..last, both included.
struct Run {
  int first, last;
};

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

// A list of layers, and whose it is.
struct LayerList {
  std::string_view key, text;
  std::string where() const { return fmt::format("{} \"{}\"", key, text); }
};

int parse_layer(const LayerList& list, std::string_view text, int num_layers) {
  text = trimmed(text);
  int layer = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  const bool is_number = !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
  if (!is_number) {
    throw bad_input(list.where(), fmt::format("\"{}\"", text), "a layer or a range such as 23-26");
  }
  if (error != std::errc() || layer >= num_layers) {
    throw bad_input(list.where(), fmt::format("layer {}", text),
                    num_layers == 0 ? "a model with layers" : fmt::format("layers 0 to {}", num_layers - 1));
  }
  return layer;
}

Run parse_run(const LayerList& list, std::string_view text, int num_layers) {
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) {
    const int layer = parse_layer(list, text, num_layers);
    return {layer, layer};
  }
  const Run run{parse_layer(list, text.substr(0, dash), num_layers),
                parse_layer(list, text.substr(dash + 1), num_layers)};
  if (run.first > run.last) {
    throw bad_input(list.where(), fmt::format("the range {}-{}", run.first, run.last),
                    fmt::format("the lower layer first, {}-{}", run.last, run.first));
  }
  return run;
}

std::vector<Run> parse_runs(const LayerList& list, int num_layers) {
  if (trimmed(list.text).empty()) throw bad_input(list.where(), "no layer", "at least one, such as 23-26");
  std::vector<Run> runs;
  for (std::string_view rest = list.text;;) {
    const size_t comma = rest.find(',');
    runs.push_back(parse_run(list, rest.substr(0, comma), num_layers));
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.first < b.first; });
  for (size_t i = 1; i < runs.size(); ++i) {
    if (runs[i].first <= runs[i - 1].last) {
      throw bad_input(list.where(), fmt::format("layer {} twice", runs[i].first), "each layer once");
    }
  }
  return runs;
}

}  // namespace

SharingPlan::SharingPlan(int num_layers) : source_(static_cast<size_t>(num_layers)) {
  std::iota(source_.begin(), source_.end(), 0);
}

SharingPlan SharingPlan::parse(std::string_view layers, AnchorRule rule, int num_layers,
                               std::string_view key) {
  const LayerList list{key, layers};
  SharingPlan plan(num_layers);
  plan.rule_ = rule;
  for (const Run& run : parse_runs(list, num_layers)) {
    if (rule == AnchorRule::kBefore && run.first == 0) {
      throw bad_input(list.where(), "layer 0 with anchor \"before\"",
                      "a run that begins at layer 1 or later (no layer before 0 computes attention weights)");
    }
    if (rule == AnchorRule::kFirst && run.first == run.last) {
      throw bad_input(list.where(), fmt::format("layer {} alone with anchor \"first\"", run.first),
                      "runs of two layers or more (the first computes, the rest reuse)");
    }
    // Runs are in order, so the layer before this one already knows its own source.
    const int anchor = rule == AnchorRule::kFirst ? run.first : plan.source_[run.first - 1];
    std::fill(plan.source_.begin() + run.first, plan.source_.begin() + run.last + 1, anchor);
    if (!plan.layers_text_.empty()) plan.layers_text_ += ',';
    plan.layers_text_ += std::to_string(run.first);
    if (run.last != run.first) plan.layers_text_ += fmt::format("-{}", run.last);
  }
  return plan;
}

std::vector<int> SharingPlan::users(int layer) const {
  std::vector<int> users;
  for (int i = 0; i < num_layers(); ++i) {
    if (i != layer && source_[i] == layer) users.push_back(i);
  }
  return users;
}

bool SharingPlan::empty() const {
  return num_shared() == 0;
}

int SharingPlan::num_shared() const {
  int count = 0;
  for (int i = 0; i < num_layers(); ++i) count += is_shared(i) ? 1 : 0;
  return count;
}

std::string describe_sharing(const SharingPlan& plan) {
  if (plan.empty()) return "no sharing";
  return fmt::format("\"{}\" with anchor \"{}\"", plan.layers_text(), to_string(plan.rule()));
}

std::string_view to_string(AnchorRule rule) {
  return rule == AnchorRule::kBefore ? "before" : "first";
}

AnchorRule parse_anchor_rule(std::string_view text) {
  if (text == "before") return AnchorRule::kBefore;
  if (text == "first") return AnchorRule::kFirst;
  throw bad_input("sharing anchor", fmt::format("\"{}\"", text), "\"before\" or \"first\"");
}

}  // namespace satune
