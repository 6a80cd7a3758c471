#include "trainer/failure_report.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <new>
#include <string_view>
#include <system_error>

#include "data/utf8.h"
#include "trainer/coordinator.h"
#include "trainer/parent_death.h"
#include "trainer/rank_error_file.h"

namespace satune {
namespace {

// LibTorch has no type for memory that a CPU does not have (c10/core/impl/alloc_cpu.cpp).
bool is_out_of_memory(const c10::Error& error) {
  return dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
         std::string_view(error.what_without_backtrace()).find("can't allocate memory") !=
             std::string_view::npos;
}

std::string hex(unsigned char byte) {
  return fmt::format("\\x{:02x}", byte);
}

}  // namespace

Failure current_failure() {
  try {
    throw;
  } catch (const BadInput& error) {
    return {error.what(), kExitBadInput};
  } catch (const RunFailed& error) {
    return {error.what(), error.exit_code()};
  } catch (const EnvironmentError& error) {
    return {error.what(), kExitEnvironment};
  } catch (const c10::OutOfMemoryError& error) {
    return {std::string("out of device memory: ") + error.what_without_backtrace(), kExitEnvironment};
  } catch (const c10::Error& error) {
    return {error.what_without_backtrace(), is_out_of_memory(error) ? kExitEnvironment : kExitFailure};
  } catch (const std::bad_alloc&) {
    return {"out of memory", kExitEnvironment};
  } catch (const std::system_error& error) {  // of a file system, standard output, threads
    // fmt::print() says "cannot write to file", whichever it is.
    if (std::ferror(stdout) != 0)
      return {"standard output: cannot be written: " + error.code().message(), kExitEnvironment};
    return {error.what(), kExitEnvironment};
  } catch (const std::exception& error) {
    return {error.what(), kExitFailure};
  }
}

std::string error_line(std::string_view message) {
  constexpr size_t kLongest = 4000;
  std::string line;
  std::string_view rest = message.substr(0, message.find_last_not_of(" \n") + 1);
  while (!rest.empty() && line.size() < kLongest) {
    const std::string_view valid = rest.substr(0, find_invalid_utf8(rest).value_or(rest.size()));
    for (const char c : valid) {
      const auto byte = static_cast<unsigned char>(c);
      line += c == '\n' || c == '\t' ? " " : byte < 0x20 || byte == 0x7f ? hex(byte) : std::string(1, c);
    }
    rest.remove_prefix(valid.size());
    if (rest.empty()) break;
    line += hex(static_cast<unsigned char>(rest.front()));
    rest.remove_prefix(1);
  }
  if (line.size() <= kLongest) return line;
  line.resize(kLongest);
  if (const auto cut = find_invalid_utf8(line)) line.resize(*cut);  // in the middle of a character
  return line + " ...";
}

bool out_of_memory() {
  try {
    throw;
  } catch (const c10::Error& error) {
    return is_out_of_memory(error);
  } catch (const std::bad_alloc&) {
    return true;
  } catch (...) {
    return false;
  }
}

void print_error(const std::string& message) {
  std::fprintf(stderr, "satune: error: %s\n", error_line(message).c_str());
}

void report_rank_failure(const RankEnvironment& environment, const std::string& message, int exit_code) {
  write_error_file(environment, message, exit_code);
  std::error_code error;
  const bool written = !environment.error_file.empty() &&
                       std::filesystem::file_size(environment.error_file, error) > 0 && !error;
  if (!written || !started_by_launcher()) print_error(message);
}

}  // namespace satune
