#include "trainer/stop_agreement.h"

#include <algorithm>

namespace satune {

int64_t StopAgreement::halt() {
  if (!posted_) posted_ = passed_;
  return *posted_;
}

StopAgreement::Passing StopAgreement::pass() {
  if (!held() && halted()) {
    if (!target_) return Passing::kHalted;
    if (passed_ >= *target_) return Passing::kStopped;
  }
  ++passed_;
  return Passing::kPassed;
}

std::optional<int64_t> agree_on_stop(const std::vector<std::optional<int64_t>>& posted) {
  int64_t target = 0;
  for (const auto& number : posted) {
    if (!number) return std::nullopt;
    target = std::max(target, *number);
  }
  return target;
}

}  // namespace satune
