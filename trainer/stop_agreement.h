// One rank's part in the agreement on where all ranks stop, and rank 0's: the decision.
//
// Why all ranks stop at the same checkpoint. Let P_r be the number that rank r posts and T = max P_r.
// - P_r is final: halt() notes the number of checkpoints passed, and pass() counts, under one mutex. From
//   then on r passes no checkpoint that is not held until T is known. So r waits at or before the first one
//   that is not held and comes after P_r, hence at or before S, the first one that is not held after T.
// - S is the same on all ranks, since they walk through the same sequence of checkpoints, held sections
//   included. Each rank goes on to S and stops there: nobody has passed it, nobody stops earlier.
// - Nobody waits for ever. Monitors post, not main threads, so the decision does not depend on a rank that is
//   inside a collective. After it all ranks go on to S, and what any of them waits for stands before S.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace satune {

/// Not thread-safe: the rank's mutex guards it.
class StopAgreement {
 public:
  void hold() { ++held_; }
  void release() { --held_; }
  bool held() const { return held_ > 0; }
  int64_t passed() const { return passed_; }

  /// The number to post; the same one when called again.
  int64_t halt();
  /// T.
  void go_until(int64_t target) { target_ = target; }

  bool halted() const { return posted_.has_value(); }
  bool decided() const { return target_.has_value(); }
  std::optional<int64_t> posted() const { return posted_; }

  enum class Passing {
    kPassed,
    kHalted,   ///< not passed: wait for go_until() and try again
    kStopped,  ///< not passed: this is S
  };
  /// The main thread is at a checkpoint.
  Passing pass();

 private:
  int held_ = 0;
  int64_t passed_ = 0;
  std::optional<int64_t> posted_, target_;
};

/// T, once all have posted.
std::optional<int64_t> agree_on_stop(const std::vector<std::optional<int64_t>>& posted);

}  // namespace satune
