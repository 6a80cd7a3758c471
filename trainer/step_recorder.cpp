#include "trainer/step_recorder.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <deque>
#include <string_view>
#include <utility>

namespace satune {
namespace {

constexpr std::string_view kPlace = "{}";

std::string without_place(std::string_view name) {
  const size_t place = name.find(kPlace);
  if (place == std::string_view::npos) return std::string(name);
  std::string text(name.substr(0, place));
  std::string_view rest = name.substr(place + kPlace.size());
  if (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  text += rest;
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

}  // namespace

std::string RecordedPart::text() const {
  std::string text = name;
  const size_t place = text.find(kPlace);
  if (place != std::string::npos) text.replace(place, kPlace.size(), std::to_string(number));
  return text;
}

std::string RecordedPart::kind() const {
  return without_place(name);
}

/// Events of one card, and the moment on the host's clock to which they are referred.
class StepRecorder::DeviceClock {
 public:
  explicit DeviceClock(const at::Device& device) : device_(device), guard_(device.type()) {}

  size_t mark() {
    // The flag of an event that keeps its time.
    events_.emplace_back(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
    events_.back().record(guard_.getStream(device_));
    return events_.size() - 1;
  }
  void synchronize() const { guard_.synchronizeDevice(device_.index()); }
  /// Microseconds of every event after the first; all are complete. From each to the next, because the time
  /// between two comes as a float.
  std::vector<double> times() const {
    std::vector<double> times = {0};
    for (size_t i = 1; i < events_.size(); ++i)
      times.push_back(times.back() + 1000.0 * events_[i - 1].elapsedTime(events_[i]));
    return times;
  }
  void forget() {
    while (events_.size() > 1) events_.pop_back();
  }

 private:
  at::Device device_;
  c10::impl::VirtualGuardImpl guard_;
  std::deque<c10::Event> events_;
};

StepRecorder::StepRecorder(const at::Device& device) {
  if (!device.is_cpu()) {
    device_ = std::make_unique<DeviceClock>(device);
    device_->synchronize();
  }
  start_ = std::chrono::steady_clock::now();
  if (device_) device_->mark();
}

StepRecorder::~StepRecorder() = default;

double StepRecorder::now() const {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_).count();
}

size_t StepRecorder::mark() {
  return device_ ? device_->mark() : 0;
}

size_t StepRecorder::begin(const char* name, int64_t number) {
  Open open;
  open.part.name = name;
  open.part.number = number;
  open.part.parent = stack_.empty() ? -1 : static_cast<int64_t>(stack_.back());
  open.part.depth = static_cast<int>(stack_.size());
  open.begin_event = mark();
  open.part.host.begin = now();
  parts_.push_back(open);
  stack_.push_back(parts_.size() - 1);
  return parts_before_ + parts_.size() - 1;
}

void StepRecorder::close(Open& open) {
  open.part.host.end = now();
  open.end_event = mark();
  open.open = false;
}

void StepRecorder::end(size_t part) {
  if (part < parts_before_) return;  // begun before the last take(), which ended it
  const size_t index = part - parts_before_;
  if (std::find(stack_.begin(), stack_.end(), index) == stack_.end()) return;
  while (stack_.back() != index) {
    close(parts_[stack_.back()]);
    stack_.pop_back();
  }
  close(parts_[index]);
  stack_.pop_back();
}

size_t StepRecorder::depart(const char* name, int64_t number) {
  Open open;
  open.part.name = name;
  open.part.number = number;
  open.begin_event = mark();
  open.part.host.begin = now();
  journeys_.push_back(open);
  return journeys_before_ + journeys_.size() - 1;
}

void StepRecorder::arrive(size_t journey) {
  if (journey < journeys_before_) return;
  Open& open = journeys_[journey - journeys_before_];
  if (open.open) close(open);
}

StepRecorder::Recorded StepRecorder::take() {
  while (!stack_.empty()) {
    close(parts_[stack_.back()]);
    stack_.pop_back();
  }
  Recorded recorded;
  recorded.on_card = device_ != nullptr;
  for (Open& open : journeys_) {
    if (open.open) close(open);
  }
  std::vector<double> times;
  if (device_) {
    device_->synchronize();
    times = device_->times();
  }
  const auto move_to = [&times](const std::vector<Open>& from, std::vector<RecordedPart>& to) {
    for (Open open : from) {
      open.part.device = open.part.host;
      if (!times.empty()) open.part.device = {times[open.begin_event], times[open.end_event]};
      to.push_back(open.part);
    }
  };
  move_to(parts_, recorded.parts);
  move_to(journeys_, recorded.journeys);
  parts_before_ += parts_.size();
  journeys_before_ += journeys_.size();
  parts_.clear();
  journeys_.clear();
  if (device_) device_->forget();
  return recorded;
}

}  // namespace satune
