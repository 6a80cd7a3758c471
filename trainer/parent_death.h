// A rank and the launcher that started it: neither outlives the other unseen.
#pragma once

namespace satune {

/// Set by our launcher to its process id, for the ranks it starts.
inline constexpr const char* kLauncherVariable = "SATUNE_LAUNCHER_PID";

/// Our launcher started this process.
bool started_by_launcher();

/// In a rank of our launcher: from here on the process is killed when the launcher ends in whatever way, and
/// at once if it has ended already. Does nothing in other processes. Call it first in main(), before threads.
void die_with_launcher();

}  // namespace satune
