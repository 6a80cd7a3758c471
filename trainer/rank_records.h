// What ranks write into the store about themselves and about the run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "trainer/process_identity.h"

namespace satune {

/// What a rank says of itself every beat. Key heartbeat_key(rank).
struct Heartbeat {
  int64_t counter = 0;  ///< moves with every beat
  ProcessIdentity process;
  int64_t step = 0;  ///< of Position, as are the next three
  std::string phase = "start";
  int segment = -1;
  std::string collective;
  double collective_seconds = 0;     ///< inside it so far
  std::string file_call;             ///< of those in progress the longest; "" = none
  double file_call_seconds = 0;      ///< inside it so far
  int64_t passed = 0;                ///< checkpoints
  std::optional<int64_t> halted_at;  ///< the number posted in the agreement on a stop
  std::string stop_signal;           ///< that this process got and would save for
  bool knows_failure = false;        ///< has read the failure: needs the store no more
  bool left = false;                 ///< ended in an orderly way
};

/// What rank 0 says to all every beat. Key kBulletinKey.
struct Bulletin {
  int64_t rounds = 0;       ///< how often every rank's counter has moved on
  std::string stop_reason;  ///< "SIGTERM on rank 1": all are to halt
  std::optional<int64_t> stop_after;
};

/// Why the run ends, or what stops it at once (is_stop()). Key kFailureKey, written once.
struct RunFailure {
  int64_t rank = 0;  ///< behind it
  bool lost = false;
  int exit_code = 0;
  std::string message;
};

/// Nothing failed: a rank was asked to stop and there was nothing to save.
bool is_stop(const RunFailure& failure);

std::string heartbeat_key(int64_t rank);
inline constexpr const char* kBulletinKey = "bulletin";
inline constexpr const char* kFailureKey = "failure";

std::string encode(const Heartbeat& heartbeat);
std::string encode(const Bulletin& bulletin);
std::string encode(const RunFailure& failure);
Heartbeat decode_heartbeat(const std::string& text);
Bulletin decode_bulletin(const std::string& text);
RunFailure decode_failure(const std::string& text);

/// "step 12, backward of segment 3, reduce-scatter of gradients"
std::string describe_position(const Heartbeat& heartbeat);
/// "rank 2 (host a, pid 123)"; "rank 2" without a heartbeat.
std::string describe_rank(int64_t rank, const std::optional<Heartbeat>& heartbeat);

}  // namespace satune
