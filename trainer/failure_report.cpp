#include "trainer/failure_report.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "trainer/parent_death.h"

namespace satune {

void print_error(const std::string& message) {
  std::string line = message.substr(0, message.find_last_not_of(" \n") + 1);
  std::replace(line.begin(), line.end(), '\n', ' ');
  std::fprintf(stderr, "satune: error: %s\n", line.c_str());
}

void report_rank_failure(const RankEnvironment& environment, const std::string& message, int exit_code) {
  write_error_file(environment, message, exit_code);
  std::error_code error;
  const bool written = !environment.error_file.empty() &&
                       std::filesystem::file_size(environment.error_file, error) > 0 && !error;
  if (!written || !started_by_launcher()) print_error(message);
}

}  // namespace satune
