// What StepTrace tells, with times. On a card every part and journey has two: when the host queued it, and
// when the card worked on it, by events on the current stream.
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/step_trace.h"

namespace satune {

/// Microseconds since the recorder was made.
struct TimeSpan {
  double begin = 0, end = 0;
  double length() const { return end - begin; }
};

/// A part, or a journey beside the parts.
struct RecordedPart {
  const char* name = "";
  int64_t number = -1;
  int64_t parent = -1;  ///< index of the part that it lies in; -1 = none
  int depth = 0;
  TimeSpan host;
  TimeSpan device;  ///< on a card; else as host

  /// The name with the number in its place: "layer 3 forward".
  std::string text() const;
  /// The name without: "layer forward".
  std::string kind() const;
};

class StepRecorder final : public StepTrace {
 public:
  /// Of work on `device`. The host waits for the card here and in take(), not between.
  explicit StepRecorder(const at::Device& device);
  ~StepRecorder() override;

  size_t begin(const char* name, int64_t number = -1) override;
  void end(size_t part) override;
  size_t depart(const char* name, int64_t number = -1) override;
  void arrive(size_t journey) override;

  struct Recorded {
    std::vector<RecordedPart> parts;     ///< in the order of their beginnings
    std::vector<RecordedPart> journeys;  ///< no parents
    bool on_card = false;
  };
  /// What was recorded so far, and forgets it. What is still open ends now.
  Recorded take();

 private:
  class DeviceClock;
  struct Open {
    RecordedPart part;
    size_t begin_event = 0, end_event = 0;
    bool open = true;
  };

  double now() const;
  size_t mark();  ///< an event on the current stream; 0 on the CPU
  void close(Open& open);

  std::chrono::steady_clock::time_point start_;
  std::unique_ptr<DeviceClock> device_;  ///< none on the CPU
  std::vector<Open> parts_, journeys_;
  std::vector<size_t> stack_;                      ///< of parts_, those open
  size_t parts_before_ = 0, journeys_before_ = 0;  ///< taken: numbers go on, so that no stale one fits
};

}  // namespace satune
