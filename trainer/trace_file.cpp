#include "trainer/trace_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "data/files/json.h"

namespace satune {
namespace {

// Rows of a process, in the order in which they are shown.
constexpr int kHostRow = 0, kDeviceRow = 1, kFirstLinkRow = 2;

Json event(const RecordedPart& part, const TimeSpan& span, const World& world, int row,
           const char* category) {
  Json arguments = {{"kind", part.kind()}};
  if (part.number >= 0) arguments["number"] = part.number;
  return {{"name", part.text()},
          {"cat", category},
          {"ph", "X"},
          {"ts", span.begin},
          {"dur", std::max(0.0, span.length())},
          {"pid", world.rank},
          {"tid", row},
          {"args", std::move(arguments)}};
}

Json name_of(const char* what, const std::string& name, const World& world, int row) {
  return {{"name", what}, {"ph", "M"}, {"pid", world.rank}, {"tid", row}, {"args", {{"name", name}}}};
}

/// One event a line: ten thousands of them, read by programs.
class Events {
 public:
  void add(const Json& event) { text_ += (text_.empty() ? "\n" : ",\n") + event.dump(); }
  std::string document() const {
    return "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [" + text_ + "\n]}\n";
  }

 private:
  std::string text_;
};

/// A row of its own for each of those that are under way at one time.
void add_journeys(Events& events, const StepRecorder::Recorded& recorded, const World& world) {
  std::vector<double> free_at;  // by row
  for (const RecordedPart& journey : recorded.journeys) {
    size_t row = 0;
    while (row < free_at.size() && free_at[row] > journey.device.begin) ++row;
    if (row == free_at.size()) {
      free_at.push_back(0);
      events.add(name_of("thread_name", row == 0 ? "communication" : fmt::format("communication {}", row + 1),
                         world, kFirstLinkRow + static_cast<int>(row)));
    }
    free_at[row] = journey.device.end;
    events.add(event(journey, journey.device, world, kFirstLinkRow + static_cast<int>(row), "communication"));
  }
}

/// The tree of kinds: what is in one place of it is one line.
class Totals {
 public:
  size_t place(int64_t parent, const RecordedPart& part) {
    const auto key = std::make_pair(parent, part.kind());
    const auto [found, is_new] = places_.try_emplace(key, lines_.size());
    if (is_new) {
      lines_.push_back({key.second, part.depth, 0, 0, 0});
      children_.emplace_back();
      (parent < 0 ? roots_ : children_[static_cast<size_t>(parent)]).push_back(found->second);
    }
    return found->second;
  }
  PartTotal& line(size_t place) { return lines_[place]; }

  std::vector<PartTotal> in_order() const {
    std::vector<PartTotal> ordered;
    for (const size_t root : roots_) add(root, ordered);
    return ordered;
  }

 private:
  void add(size_t place, std::vector<PartTotal>& ordered) const {
    ordered.push_back(lines_[place]);
    for (const size_t child : children_[place]) add(child, ordered);
  }

  std::map<std::pair<int64_t, std::string>, size_t> places_;
  std::vector<PartTotal> lines_;
  std::vector<std::vector<size_t>> children_;
  std::vector<size_t> roots_;
};

}  // namespace

std::string trace_json(const StepRecorder::Recorded& recorded, const World& world) {
  Events events;
  events.add(name_of("process_name", fmt::format("rank {} of {}", world.rank, world.size), world, kHostRow));
  events.add(name_of("thread_name", "host", world, kHostRow));
  for (const RecordedPart& part : recorded.parts)
    events.add(event(part, part.host, world, kHostRow, recorded.on_card ? "host" : "step"));
  if (recorded.on_card) {
    events.add(name_of("thread_name", "card", world, kDeviceRow));
    for (const RecordedPart& part : recorded.parts)
      events.add(event(part, part.device, world, kDeviceRow, "step"));
  }
  add_journeys(events, recorded, world);
  return events.document();
}

std::vector<PartTotal> part_totals(const StepRecorder::Recorded& recorded) {
  Totals totals;
  std::vector<size_t> place(recorded.parts.size());
  for (size_t i = 0; i < recorded.parts.size(); ++i) {
    const RecordedPart& part = recorded.parts[i];
    const int64_t parent = part.parent < 0 ? -1 : static_cast<int64_t>(place[part.parent]);
    place[i] = totals.place(parent, part);
    PartTotal& line = totals.line(place[i]);
    ++line.calls;
    line.microseconds += part.device.length();
    line.own += part.device.length();
    if (parent >= 0) totals.line(static_cast<size_t>(parent)).own -= part.device.length();
  }
  return totals.in_order();
}

std::string summary_text(const StepRecorder::Recorded& recorded) {
  const std::vector<PartTotal> lines = part_totals(recorded);
  double all = 0;
  for (const PartTotal& line : lines) all += line.depth == 0 ? line.microseconds : 0;
  const auto row = [all](const std::string& name, int64_t calls, double microseconds) {
    return fmt::format("{:<44}{:>8}{:>12.3f}{:>8.1f} %\n", name, calls, microseconds / 1000,
                       all > 0 ? 100 * microseconds / all : 0.0);
  };
  std::string text = fmt::format("{:<44}{:>8}{:>12}{:>10}\n", "segment", "calls", "ms", "share");
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string indent(2 * static_cast<size_t>(lines[i].depth), ' ');
    text += row(indent + lines[i].kind, lines[i].calls, lines[i].microseconds);
  }
  return text;
}

}  // namespace satune
