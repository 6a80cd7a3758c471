#include "trainer/profile.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <system_error>
#include <utility>

#include "data/files/counted.h"
#include "data/files/error.h"
#include "trainer/trace_file.h"

namespace satune {
namespace {

constexpr int64_t kWarmUpSteps = 2;  // memory is allocated, libraries choose their kernels

}  // namespace

Profile::Profile(int64_t steps, std::filesystem::path run_folder, const at::Device& device,
                 Coordinator& coordinator, FileOps& ops)
    : steps_(steps),
      folder_(std::move(run_folder) / "profile"),
      device_(device),
      coordinator_(coordinator),
      ops_(ops) {}

Profile::~Profile() {
  write();
}

void Profile::before_step(int64_t left) {
  if (written_ || recorder_) return;
  if (seen_ < std::min(kWarmUpSteps, std::max<int64_t>(0, seen_ + left - steps_))) {
    ++seen_;
    return;
  }
  recorder_.emplace(device_);
  coordinator_.set_trace(&*recorder_);
}

void Profile::after_step() {
  if (recorder_ && !written_ && ++recorded_ == steps_) write();
}

void Profile::write() noexcept {
  coordinator_.set_trace(nullptr);
  if (!recorder_ || std::exchange(written_, true)) return;
  const World& world = coordinator_.world();
  const std::filesystem::path file = folder_ / fmt::format("rank{}.json", world.rank);
  try {
    const StepRecorder::Recorded recorded = recorder_->take();
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error)
      throw EnvironmentError(fmt::format("{}: cannot be made: {}", folder_.string(), error.message()));
    const bool replaces = std::filesystem::exists(file);
    write_file_atomic(file, trace_json(recorded, world), ops_);
    if (world.rank != 0) return;
    spdlog::info("profile of {}: {} (open it in ui.perfetto.dev){}", counted(recorded_, "step"),
                 file.string(), replaces ? ", in the place of an earlier one" : "");
    fmt::print(stderr, "{}", summary_text(recorded));
  } catch (const std::exception& error) {
    spdlog::warn("profile: {}", error.what());
  }
}

}  // namespace satune
