// Stops a run at a chosen snapshot.
#pragma once

#include <csignal>
#include <filesystem>
#include <string>

#include "data/files/atomic_file.h"
#include "trainer/snapshot.h"

namespace satune::trainer_test {

/// Sends a signal to this process when the snapshot of a step has been renamed into place: in the middle of
/// the run, before the next step.
class SignalAtSnapshot : public FileOps {
 public:
  SignalAtSnapshot(int64_t step, int signal) : name_(snapshot_name(step)), signal_(signal) {}
  int rename(const char* from, const char* to) override {
    const int result = FileOps::rename(from, to);
    if (std::filesystem::path(to).filename() == name_) ::raise(signal_);
    return result;
  }

 private:
  std::string name_;
  int signal_;
};

}  // namespace satune::trainer_test
