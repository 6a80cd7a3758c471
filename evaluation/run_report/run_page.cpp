#include "evaluation/run_report/run_page.h"

#include <fmt/format.h>

#include <algorithm>

#include "data/files/counted.h"
#include "evaluation/run_report/run_sections.h"

namespace satune {
namespace {

// An icon of its own, or browsers ask the server for one.
constexpr std::string_view kIcon = "<link rel=\"icon\" href=\"data:,\">\n";

constexpr std::string_view kNothingFetched =
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    "img-src data:\">\n";

// The server answers 304 while nothing has changed. Text that is about to be read is not replaced then.
constexpr std::string_view kScript = R"(<noscript><meta http-equiv="refresh" content="5"></noscript>
<script>
addEventListener('DOMContentLoaded', () => {
  const main = document.querySelector('main'), state = document.createElement('p');
  state.setAttribute('role', 'status');
  state.className = 'label';
  main.before(state);
  let tag = '';
  async function refresh() {
    try {
      const answer = await fetch('body', {cache: 'no-store', headers: tag ? {'If-None-Match': tag} : {}});
      const text = await answer.text();
      if (answer.status === 200) {
        main.innerHTML = text;
        tag = answer.headers.get('ETag') || '';
        state.textContent = 'Live: as of ' + new Date().toLocaleTimeString() + '.';
      } else if (answer.status !== 304) {
        state.textContent = 'satune watch answers with ' + answer.status + '.';
      }
    } catch (error) {
      state.textContent = 'satune watch does not answer; this is what it said last.';
    }
    setTimeout(refresh, 2000);
  }
  refresh();
});
</script>
)";

/// Two runs of one name are told apart by their paths.
std::vector<NamedRun> named(std::span<const RunHistory* const> runs) {
  std::vector<NamedRun> named;
  for (const RunHistory* run : runs) {
    const auto same =
        std::count_if(runs.begin(), runs.end(), [&](const RunHistory* r) { return r->name == run->name; });
    named.push_back({same > 1 ? printable(run->folder.string()) : run->name, run});
  }
  return named;
}

std::string title_of(const std::vector<NamedRun>& runs) {
  if (runs.size() == 1) return "Run " + runs.front().name;
  return fmt::format("{} runs side by side", runs.size());
}

void add_problems(HtmlPage& page, const std::vector<NamedRun>& runs) {
  for (const NamedRun& run : runs) {
    const std::string name = runs.size() == 1 ? "" : run.name + ": ";
    for (const std::string& problem : run.history->problems) page.paragraph(name + problem);
    const StepColumns& rows = run.history->rows;
    if (rows.broken_lines > 0)
      page.paragraph(
          fmt::format("{}metrics.jsonl: {} lines are no rows and are left out.", name, rows.broken_lines));
    if (rows.unfinished_line)
      page.paragraph(name +
                     "metrics.jsonl: the last line is not finished (it is being written, or the run was "
                     "killed) and is left out.");
    for (const auto& [key, count] : rows.nulls)
      if (key == "loss" || key == "grad_norm" || key == "eval_loss")
        page.paragraph(fmt::format("{}{} is not finite in {}, which its curve skips.", name, key,
                                   counted(count, "row")));
  }
}

}  // namespace

HtmlPage run_page(std::span<const RunHistory* const> histories) {
  const std::vector<NamedRun> runs = named(histories);
  HtmlPage page(title_of(runs));
  add_problems(page, runs);
  add_summary(page, runs);
  add_curves(page, runs);
  add_data(page, runs);
  add_samples(page, runs);
  add_snapshots(page, runs);
  add_settings(page, runs);
  return page;
}

std::string run_report(std::span<const RunHistory* const> runs) {
  return run_page(runs).text(std::string(kNothingFetched) + std::string(kIcon));
}

std::string live_page(const HtmlPage& page) {
  return page.text(std::string(kIcon) + std::string(kScript));
}

}  // namespace satune
