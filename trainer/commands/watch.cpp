// satune watch: the page of satune report, served to browsers of this machine and renewed while runs go on.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <filesystem>
#include <system_error>

#include "data/files/error.h"
#include "evaluation/run_report/run_page.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/standard_output.h"
#include "trainer/http_server.h"

namespace satune {
namespace {

struct WatchOptions {
  std::vector<std::string> runs;
  uint16_t port = 8008;
};

/// Pages about the runs as they are now; made again only when a file has changed.
class LivePages {
 public:
  explicit LivePages(const std::vector<std::string>& runs) {
    for (const std::string& run : runs) readers_.emplace_back(run, RunReader::Begun::kMaybeLater);
  }

  /// Those that are not there yet.
  std::vector<std::string> absent() const {
    std::vector<std::string> folders;
    std::error_code error;
    for (const RunReader& reader : readers_)
      if (!std::filesystem::exists(reader.history().folder, error))
        folders.push_back(reader.history().folder.string());
    return folders;
  }

  std::optional<HttpPage> page(std::string_view path) {
    // The two paths there are. Nothing of a request is ever looked up on the disk.
    const bool body = path.substr(1) == kLiveBody;
    if (path != "/" && !body) return std::nullopt;
    refresh();
    return HttpPage{.body = body ? body_ : page_,
                    .headers =
                        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; "
                        "script-src 'unsafe-inline'; connect-src 'self'; img-src data:\r\n"};
  }

 private:
  void refresh() {
    for (RunReader& reader : readers_) stale_ |= reader.refresh();
    if (!stale_) return;
    std::vector<const RunHistory*> runs;
    for (const RunReader& reader : readers_) runs.push_back(&reader.history());
    const HtmlPage page = run_page(runs);
    body_ = page.body();
    page_ = live_page(page);
    stale_ = false;
  }

  std::vector<RunReader> readers_;
  std::string page_, body_;
  bool stale_ = true;  ///< until both are made of what was read last
};

int run_watch(const WatchOptions& options) {
  SignalEvents signals({SIGINT, SIGTERM, SIGHUP});
  LivePages pages(options.runs);
  HttpServer server(options.port);
  fmt::print("http://127.0.0.1:{}/  (Ctrl-C ends)\n", server.port());
  finish_standard_output();
  // It may as well be misspelt.
  for (const std::string& folder : pages.absent())
    spdlog::info("{}: there is no such folder yet; the page says when its run begins", folder);
  server.serve([&](std::string_view path) { return pages.page(path); }, signals);
  return kExitOk;
}

}  // namespace

void add_watch_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<WatchOptions>();
  CLI::App* command = app.add_subcommand("watch", "Serve a live page about runs on this machine");
  command
      ->add_option("run", options->runs,
                   "Run folders (output_dir), side by side; a run may begin later, and its folder come then")
      ->required();
  command->add_option("--port", options->port, "Of 127.0.0.1 (default 8008; 0 = any free one)")
      ->check(CLI::Range(0, 65535));
  command->footer(
      "Reads files only and never writes: runs do not notice. Only this machine can connect; from another, "
      "forward the\n"
      "port: ssh -L 8008:127.0.0.1:8008 MACHINE. Ctrl-C ends it (exit code 0).\n"
      "Examples:\n"
      "  satune watch runs/sa\n"
      "  satune watch runs/dense runs/sa --port 0");
  command->callback([options, &exit_code] { exit_code = run_watch(*options); });
}

}  // namespace satune
