#include "trainer/rank_records.h"

#include <fmt/format.h>

#include "data/files/error.h"
#include "data/files/json.h"

namespace satune {
namespace {

// Messages come from anywhere and need not be UTF-8.
std::string dump(const Json& record) {
  return record.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json optional_number(const std::optional<int64_t>& number) {
  return number ? Json(*number) : Json(nullptr);
}

std::optional<int64_t> optional_number(const Json& value) {
  return value.is_null() ? std::nullopt : std::optional(value.get<int64_t>());
}

}  // namespace

bool is_stop(const RunFailure& failure) {
  return !failure.lost && failure.exit_code == kExitResumable;
}

std::string heartbeat_key(int64_t rank) {
  return fmt::format("heartbeat/{}", rank);
}

std::string encode(const Heartbeat& h) {
  return dump({{"counter", h.counter},
               {"host", h.process.host},
               {"machine", h.process.machine},
               {"pid", h.process.pid},
               {"start_time", h.process.start_time},
               {"step", h.step},
               {"phase", h.phase},
               {"segment", h.segment},
               {"collective", h.collective},
               {"collective_seconds", h.collective_seconds},
               {"file_call", h.file_call},
               {"file_call_seconds", h.file_call_seconds},
               {"passed", h.passed},
               {"halted_at", optional_number(h.halted_at)},
               {"stop_signal", h.stop_signal},
               {"knows_failure", h.knows_failure},
               {"left", h.left}});
}

Heartbeat decode_heartbeat(const std::string& text) {
  const Json json = Json::parse(text);
  Heartbeat h;
  json.at("counter").get_to(h.counter);
  json.at("host").get_to(h.process.host);
  json.at("machine").get_to(h.process.machine);
  json.at("pid").get_to(h.process.pid);
  json.at("start_time").get_to(h.process.start_time);
  json.at("step").get_to(h.step);
  json.at("phase").get_to(h.phase);
  json.at("segment").get_to(h.segment);
  json.at("collective").get_to(h.collective);
  json.at("collective_seconds").get_to(h.collective_seconds);
  json.at("file_call").get_to(h.file_call);
  json.at("file_call_seconds").get_to(h.file_call_seconds);
  json.at("passed").get_to(h.passed);
  h.halted_at = optional_number(json.at("halted_at"));
  json.at("stop_signal").get_to(h.stop_signal);
  json.at("knows_failure").get_to(h.knows_failure);
  json.at("left").get_to(h.left);
  return h;
}

std::string encode(const Bulletin& b) {
  return dump(
      {{"rounds", b.rounds}, {"stop_reason", b.stop_reason}, {"stop_after", optional_number(b.stop_after)}});
}

Bulletin decode_bulletin(const std::string& text) {
  const Json json = Json::parse(text);
  return {json.at("rounds").get<int64_t>(), json.at("stop_reason").get<std::string>(),
          optional_number(json.at("stop_after"))};
}

std::string encode(const RunFailure& f) {
  return dump({{"rank", f.rank}, {"lost", f.lost}, {"exit_code", f.exit_code}, {"message", f.message}});
}

RunFailure decode_failure(const std::string& text) {
  const Json json = Json::parse(text);
  return {json.at("rank").get<int64_t>(), json.at("lost").get<bool>(), json.at("exit_code").get<int>(),
          json.at("message").get<std::string>()};
}

std::string describe_position(const Heartbeat& heartbeat) {
  std::string text;
  if (heartbeat.step > 0) text += fmt::format("step {}, ", heartbeat.step);
  text += heartbeat.phase;
  if (heartbeat.segment >= 0) text += fmt::format(" of segment {}", heartbeat.segment);
  if (!heartbeat.collective.empty()) text += ", " + heartbeat.collective;
  return text;
}

std::string describe_rank(int64_t rank, const std::optional<Heartbeat>& heartbeat) {
  if (!heartbeat) return fmt::format("rank {}", rank);
  return fmt::format("rank {} (host {}, pid {})", rank, heartbeat->process.host, heartbeat->process.pid);
}

}  // namespace satune
