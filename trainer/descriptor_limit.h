// How many files and sockets a process may hold open.
#pragma once

namespace satune {

/// Raises the soft limit to the hard one. A rank holds a connection to each of its peers, and the usual soft
/// limit, 1024, is there for programs that use select(), which nothing here does. Where it cannot be raised
/// it stays.
void raise_descriptor_limit();

}  // namespace satune
