// What c10d says, for people: its exceptions as one line, and its own log out of the way.
#pragma once

#include <exception>
#include <string>

namespace satune {

/// The message of an exception of c10d or Gloo on one line, without call stack and source file.
std::string one_line(const std::exception& error);

/// Whether the cause lies outside of this process's own work: what a transport, the store, a card, a file or
/// the machine says. Not so memory that ran out here, bad input, and what LibTorch refuses to compute.
bool comes_from_outside(const std::exception& error);

/// c10d logs each connection that fails, with a call stack of a dozen lines, before it throws. All of that is
/// in our messages: unless TORCH_CPP_LOG_LEVEL asks for it, only what is fatal is logged from now on. For the
/// whole process; to be called before other threads use c10d.
void quiet_c10d();

}  // namespace satune
