// The parts of a page about runs, each under a heading of its own.
#pragma once

#include <span>
#include <string>

#include "evaluation/figures/html_page.h"
#include "evaluation/run_report/run_history.h"

namespace satune {

inline constexpr const char* kDash = "\xE2\x80\x93";  ///< a dash: what a page shows where a run has nothing

/// A run and what the page calls it.
struct NamedRun {
  std::string name;
  const RunHistory* history = nullptr;
};
using Runs = std::span<const NamedRun>;

void add_summary(HtmlPage& page, Runs runs);
/// Every metric group with its curves, and a table of their numbers.
void add_curves(HtmlPage& page, Runs runs);
void add_data(HtmlPage& page, Runs runs);
void add_samples(HtmlPage& page, Runs runs);
void add_snapshots(HtmlPage& page, Runs runs);
void add_settings(HtmlPage& page, Runs runs);

}  // namespace satune
