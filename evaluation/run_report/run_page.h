// One page about one run, or about several side by side.
#pragma once

#include <span>
#include <string>

#include "evaluation/figures/html_page.h"
#include "evaluation/run_report/run_history.h"

namespace satune {

/// Summary, curves, data and lengths, samples, snapshots, settings. What is missing is said. However long the
/// runs are, the page stays below about 2 MB: curves are thinned, samples counted and cut.
HtmlPage run_page(std::span<const RunHistory* const> runs);

/// The page as a file that works from anywhere: a policy in its head forbids browsers to fetch anything.
std::string run_report(std::span<const RunHistory* const> runs);

/// What a live page asks its server for beside itself: run_page(...).body().
inline constexpr const char* kLiveBody = "body";
/// The page with a small script that puts the newest kLiveBody in place of the old every two seconds.
/// Without JavaScript the page reloads itself.
std::string live_page(const HtmlPage& page);

}  // namespace satune
