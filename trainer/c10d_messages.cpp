#include "trainer/c10d_messages.h"

#include <c10/util/Exception.h>
#include <c10/util/Logging.h>

#include <cstdlib>
#include <string_view>
#include <system_error>

#include "data/files/error.h"

namespace satune {

std::string one_line(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string_view text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  text = text.substr(0, text.find('\n'));
  // Gloo begins with "[/path/pair.cc:123] ".
  const size_t end = text.find("] ");
  if (text.starts_with("[/") && end != std::string_view::npos) text.remove_prefix(end + 2);
  return std::string(text);
}

bool comes_from_outside(const std::exception& error) {
  return dynamic_cast<const EnvironmentError*>(&error) != nullptr ||
         dynamic_cast<const std::system_error*>(&error) != nullptr ||
         dynamic_cast<const c10::DistError*>(&error) != nullptr ||
         dynamic_cast<const c10::AcceleratorError*>(&error) != nullptr;
}

void quiet_c10d() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
}

}  // namespace satune
