// satune train --profile N: N steps of a run as a trace, one file a rank, in the folder profile/ of the run.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <filesystem>
#include <optional>

#include "data/files/atomic_file.h"
#include "trainer/coordinator.h"
#include "trainer/step_recorder.h"

namespace satune {

inline constexpr int64_t kMostProfiledSteps = 100;  ///< more would be gigabytes

class Profile {
 public:
  /// Records `steps` steps and what happens after each of them (evaluation, snapshot), from the third step of
  /// this process on, or earlier where fewer are left. All of these must outlive it.
  Profile(int64_t steps, std::filesystem::path run_folder, const at::Device& device, Coordinator& coordinator,
          FileOps& ops);
  /// Writes what was recorded until then: a run that stops or fails earlier leaves a trace too.
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  /// Around each step with what follows it. `left`: steps that the run will do, this one among them.
  void before_step(int64_t left);
  void after_step();
  /// Writes the file, atomically, and prints the summary on the first rank. One that cannot be written costs
  /// the trace, not the run: a warning tells. Only the first call does anything.
  void write() noexcept;

 private:
  const int64_t steps_;
  const std::filesystem::path folder_;
  const at::Device device_;
  Coordinator& coordinator_;
  FileOps& ops_;
  std::optional<StepRecorder> recorder_;
  int64_t seen_ = 0, recorded_ = 0;
  bool written_ = false;
};

}  // namespace satune
