// A server of a few pages for browsers on this machine.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "trainer/descriptor.h"
#include "trainer/signal_events.h"

namespace satune {

struct HttpPage {
  std::string content_type = "text/html; charset=utf-8";
  std::string body;
  /// Extra header lines, each with its "\r\n".
  std::string headers = {};
};

/// HTTP/1.1, GET only, one request a connection, on 127.0.0.1 alone; one thread, which waits in poll(). A
/// request that names another host is refused, so that no web page elsewhere reads these through a name of
/// its own. Requests are at most 8 KiB, come within 10 s, and at most 64 are in progress: for one more, the
/// connection goes that has waited longest for its client. Where the system has no descriptor for a new one
/// it is warned about, once, and tried again every second.
class HttpServer {
 public:
  /// The page under a path such as "/" (as it stands in the request, without a query), or nullopt for 404.
  /// What it throws is answered with 500 and logged.
  using Pages = std::function<std::optional<HttpPage>(std::string_view path)>;

  /// Listens. `port` 0 = any free one. Throws EnvironmentError naming the port when it is taken.
  explicit HttpServer(uint16_t port);
  uint16_t port() const { return port_; }

  /// Answers until a signal comes. Pages have an ETag of their content; a browser that has it gets 304.
  void serve(const Pages& pages, SignalEvents& signals);

 private:
  Descriptor listener_;
  uint16_t port_ = 0;
};

/// The whole answer to a request's head (up to its empty line): status line, headers, body.
std::string http_answer(std::string_view request, const HttpServer::Pages& pages);

}  // namespace satune
