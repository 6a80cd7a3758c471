#include "trainer/rank_failure.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "data/files/error.h"
#include "data/files/json.h"

namespace satune {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// The file's own time stamp is in whole seconds (torchrun reads no others), so that of the file system
// counts.
double changed_at(const std::filesystem::path& file, double otherwise) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0) return otherwise;
  return static_cast<double>(status.st_mtim.tv_sec) + 1e-9 * static_cast<double>(status.st_mtim.tv_nsec);
}

// {"message": {"message": TEXT, ...}}; "" for anything else, such as no file.
std::string message_in(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  const Json json = Json::parse(stream, nullptr, /*allow_exceptions=*/false);
  const Json::json_pointer place("/message/message");
  return json.is_object() && json.contains(place) && json.at(place).is_string()
             ? json.at(place).get<std::string>()
             : "";
}

}  // namespace

RankFailure describe_failure(int64_t rank, const ProcessEnd& end, int64_t noticed,
                             const std::filesystem::path& error_file) {
  RankFailure failure{rank, end, noticed, seconds_now(), message_in(error_file)};
  if (!failure.message.empty()) failure.time = changed_at(error_file, failure.time);
  return failure;
}

std::string reason(const RankFailure& failure) {
  if (failure.end.signal != 0 && failure.message.empty()) {
    return "killed by " + signal_name(failure.end.signal);
  }
  std::string text = failure.message;
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.empty() ? fmt::format("exit code {} without a message", failure.end.exit_code) : text;
}

std::string named_reason(const RankFailure& failure) {
  const std::string text = reason(failure);
  const bool named = text.starts_with(fmt::format("rank {} (", failure.rank));
  return named ? text : fmt::format("rank {}: {}", failure.rank, text);
}

const RankFailure& first_cause(const std::vector<RankFailure>& failures) {
  const auto noticed_first =
      std::min_element(failures.begin(), failures.end(),
                       [](const RankFailure& a, const RankFailure& b) { return a.noticed < b.noticed; });
  const auto killed = std::find_if(failures.begin(), failures.end(), [&](const RankFailure& failure) {
    return failure.end.signal != 0 && failure.message.empty() && failure.noticed == noticed_first->noticed;
  });
  if (killed != failures.end()) return *killed;
  return *std::min_element(failures.begin(), failures.end(),
                           [](const RankFailure& a, const RankFailure& b) { return a.time < b.time; });
}

int exit_code_of(const RankFailure& cause) {
  return cause.end.signal != 0 ? kExitEnvironment : cause.end.exit_code;
}

}  // namespace satune
