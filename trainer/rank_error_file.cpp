#include "trainer/rank_error_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>

#include "data/files/json.h"
#include "trainer/output_lines.h"

namespace satune {
namespace {

std::string error_json(const std::string& message, int exit_code) {
  // torchrun's summary shows the call stack where there is one, so the message stands in its place too. It
  // takes the exit code from the process; our launcher reads it here.
  const nlohmann::json document = {
      {"message",
       {{"message", message},
        {"errorCode", exit_code},
        {"extraInfo", {{"py_callstack", message}, {"timestamp", std::to_string(std::time(nullptr))}}}}}};
  // A message may quote bytes of a file that are no UTF-8.
  return document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

void write_error_file(const RankEnvironment& environment, const std::string& message, int exit_code) try {
  if (environment.error_file.empty()) return;
  const std::string text = error_json(message, exit_code);
  // A name of its own for each thread and process, and a link, which unlike a rename fails where there is a
  // file: the first cause stays.
  std::string temporary = environment.error_file + ".XXXXXX";
  const int fd = ::mkstemp(temporary.data());
  if (fd < 0) return;
  const bool written = write_all(fd, text);
  ::close(fd);
  if (written && ::link(temporary.c_str(), environment.error_file.c_str()) != 0 && errno != EEXIST) {
    // A file system without links.
    if (::access(environment.error_file.c_str(), F_OK) != 0 &&
        ::rename(temporary.c_str(), environment.error_file.c_str()) == 0) {
      return;
    }
  }
  ::unlink(temporary.c_str());
} catch (...) {  // on the way out with an error that is to be reported: this one is not
}

}  // namespace satune
