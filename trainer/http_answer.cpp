#include <spdlog/spdlog.h>

#include <algorithm>
#include <cctype>
#include <functional>

#include "trainer/http_server.h"

namespace satune {
namespace {

struct Request {
  std::string_view method, path, host, known_tag;
};

/// Up to `end`, which is taken off too; everything where there is none.
std::string_view take_until(std::string_view& text, std::string_view end) {
  const size_t at = text.find(end);
  const std::string_view before = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + end.size());
  return before;
}

bool same_letters(std::string_view a, std::string_view b) {
  return a.size() == b.size() &&
         std::equal(a.begin(), a.end(), b.begin(),
                    [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin, end + 1 - begin);
}

std::optional<Request> parse(std::string_view head) {
  std::string_view line = take_until(head, "\r\n");
  Request request;
  request.method = take_until(line, " ");
  std::string_view target = take_until(line, " ");
  if (request.method.empty() || !target.starts_with('/') || !line.starts_with("HTTP/1.")) return std::nullopt;
  request.path = take_until(target, "?");
  while (!head.empty()) {
    std::string_view field = take_until(head, "\r\n");
    if (field.empty()) break;
    const std::string_view name = take_until(field, ":"), value = trimmed(field);
    if (same_letters(name, "host")) request.host = value;
    if (same_letters(name, "if-none-match")) request.known_tag = value;
  }
  return request;
}

/// Whatever the port: it may be forwarded from another machine's.
bool is_this_machine(std::string_view host) {
  const std::string_view name = take_until(host, ":");
  return same_letters(name, "localhost") || name == "127.0.0.1";
}

std::string answer(std::string_view status, const HttpPage& page, std::string_view tag = {}) {
  return fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\nCache-Control: "
      "no-cache\r\n"
      "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nX-Frame-Options: "
      "DENY\r\n{}{}\r\n{}",
      status, page.content_type, page.body.size(), page.headers,
      tag.empty() ? "" : fmt::format("ETag: {}\r\n", tag), page.body);
}

std::string refusal(std::string_view status, std::string_view headers = {}) {
  return answer(status, {"text/plain; charset=utf-8", std::string(status) + "\n", std::string(headers)});
}

}  // namespace

std::string http_answer(std::string_view text, const HttpServer::Pages& pages) {
  const std::optional<Request> request = parse(text);
  if (!request) return refusal("400 Bad Request");
  if (!is_this_machine(request->host)) return refusal("403 Forbidden");
  if (request->method != "GET") return refusal("405 Method Not Allowed", "Allow: GET\r\n");
  std::optional<HttpPage> page;
  try {
    page = pages(request->path);
  } catch (const std::exception& error) {
    spdlog::warn("{}", error.what());
    return refusal("500 Internal Server Error");
  }
  if (!page) return refusal("404 Not Found");
  const std::string tag = fmt::format("\"{:016x}\"", std::hash<std::string>()(page->body));
  if (request->known_tag == tag)
    return fmt::format(
        "HTTP/1.1 304 Not Modified\r\nETag: {}\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n", tag);
  return answer("200 OK", *page, tag);
}

}  // namespace satune
