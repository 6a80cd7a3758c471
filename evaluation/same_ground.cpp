#include "evaluation/same_ground.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/files/error.h"

namespace satune {
namespace {

std::string shortened(const std::string& fingerprint) {
  return fingerprint.substr(0, 12);
}

bool both_and_different(const std::string& a, const std::string& b) {
  return !a.empty() && !b.empty() && a != b;
}

bool one_alone(const std::string& a, const std::string& b) {
  return a.empty() != b.empty();
}

/// Whether template, tokenizer or data are not the same though the items may be. Data files may differ.
bool origins_differ(const TaskFingerprints& a, const TaskFingerprints& b) {
  if (both_and_different(a.prompt_form, b.prompt_form) || both_and_different(a.tokenizer, b.tokenizer))
    return true;
  return a.told && b.told &&
         (one_alone(a.prompt_form, b.prompt_form) || one_alone(a.tokenizer, b.tokenizer) ||
          one_alone(a.data, b.data));
}

/// Which of data, template and tokenizer differ, as "tokenizer 0123 (not 4567)".
std::vector<std::string> different_parts(const TaskFingerprints& a, const TaskFingerprints& b) {
  std::vector<std::string> parts;
  const auto add = [&](const char* name, const std::string& of_a, const std::string& of_b) {
    // What one side alone has is another one, but only where both reports tell of theirs.
    if (both_and_different(of_a, of_b) || (a.told && b.told && of_a != of_b))
      parts.push_back(fmt::format("another {}: {} instead of {}", name,
                                  of_b.empty() ? "none" : shortened(of_b),
                                  of_a.empty() ? "none" : shortened(of_a)));
  };
  add("data file", a.data, b.data);
  add("template", a.prompt_form, b.prompt_form);
  add("tokenizer", a.tokenizer, b.tokenizer);
  return parts;
}

void check_task(const std::string& task, const ResultSet& a, const ResultSet& b) {
  const TaskResults &of_a = a.tasks.at(task), &of_b = b.tasks.at(task);
  const std::string where = fmt::format("{}: task {}", b.name, task);
  const std::string expected = fmt::format("the data, template and tokenizer of {}", a.name);
  const TaskFingerprints &one = of_a.fingerprints, &other = of_b.fingerprints;
  const bool items_differ = both_and_different(one.items, other.items);
  if (items_differ || origins_differ(one, other)) {
    const std::vector<std::string> parts = different_parts(one, other);
    const std::string found =
        !parts.empty() ? fmt::format("{}", fmt::join(parts, ", "))
        : one.tokenizer.empty() || other.tokenizer.empty()
            ? fmt::format("fingerprint {} instead of {}", shortened(other.items), shortened(one.items))
            : "the same data, template and tokenizer under other options (--limit, --max-records, "
              "--max-length, --num-fewshot, ...)";
    throw bad_input(where, found, expected);
  }
  for (const char* key : {"n", "tokens", "over_length"})
    if (of_a.metrics.contains(key) && of_b.metrics.contains(key) && of_a.metrics[key] != of_b.metrics[key])
      throw bad_input(
          where, fmt::format("{} {} instead of {}", key, of_b.metrics[key].dump(), of_a.metrics[key].dump()),
          expected);
}

void check_prompts(const ResultSet& a, const ResultSet& b) {
  for (const auto& [number, prompt] : a.prompts) {
    const auto other = b.prompts.find(number);
    if (other == b.prompts.end())
      throw bad_input(b.name, fmt::format("no answer to prompt {}", number), "the prompts of " + a.name);
    if (other->second != prompt)
      throw bad_input(fmt::format("{}: prompt {}", b.name, number), quote_json(other->second),
                      "the prompt of " + a.name);
  }
  for (const auto& [number, prompt] : b.prompts)
    if (!a.prompts.contains(number))
      throw bad_input(b.name, fmt::format("an answer to prompt {}", number),
                      fmt::format("the prompts of {} alone", a.name));
}

}  // namespace

void check_same_ground(const ResultSet& a, const ResultSet& b) {
  for (const auto& [use, fingerprint] : a.texts) {
    const auto other = b.texts.find(use);
    if (other == b.texts.end() || other->second == fingerprint) continue;
    throw bad_input(
        fmt::format("{}: {} data", b.name, use), "fingerprint " + shortened(other->second),
        fmt::format("{}, that of {}: the same data, template and tokenizer", shortened(fingerprint), a.name));
  }
  bool common = !a.prompts.empty() && !b.prompts.empty();
  if (common) check_prompts(a, b);
  for (const auto& [task, results] : a.tasks) {
    if (!b.tasks.contains(task)) continue;
    common = true;
    check_task(task, a, b);
  }
  if (!common) throw bad_input(b.name, "no task that " + a.name + " has", "one at least in both");
}

}  // namespace satune
