// The folder that the token caches of all runs share: where a file is, and which files go.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace satune {

struct TokenCacheLimits {
  std::chrono::seconds unused = std::chrono::days(30);  ///< a file that nobody opened for longer goes
  uint64_t bytes = 20'000'000'000;                      ///< above it the longest unused go first
};

/// "tokens-<start of the fingerprint>.bin" in `directory`.
std::filesystem::path token_cache_file(const std::filesystem::path& directory, std::string_view fingerprint);

/// Notes in the file's time that it was used now. Costs nothing but its age where that is not allowed.
void mark_token_cache_used(const std::filesystem::path& file);

/// Removes what is beyond the limits, and what writers that died a day ago or longer left unfinished. Files
/// that a TokenCache of any process has open (it holds a shared lock) stay and count, as do files of other
/// names, which do not count. Returns what was removed; what cannot be removed is left alone.
std::vector<std::filesystem::path> sweep_token_caches(const std::filesystem::path& directory,
                                                      const TokenCacheLimits& limits);

}  // namespace satune
